DROP FUNCTION ingest_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[]);
DROP FUNCTION register_users(json);
