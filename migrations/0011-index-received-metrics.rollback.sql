DROP INDEX metrics_received_brin;
