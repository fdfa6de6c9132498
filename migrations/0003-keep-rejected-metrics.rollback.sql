DROP TABLE rejected_metrics;
