DROP TABLE rejected_counts;
