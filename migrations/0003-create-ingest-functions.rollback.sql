DROP FUNCTION ingest_metrics(json);
DROP FUNCTION register_users(json);
