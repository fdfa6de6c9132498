DROP FUNCTION keep_rejected(json);
DROP TABLE rejected_metrics;
