DROP FUNCTION create_metrics_partitions(integer);
