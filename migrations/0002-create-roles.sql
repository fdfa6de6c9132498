-- The roles metrics_writer and metrics_reader (SECURITY.md, The database). Whoever runs the migrations is the owner. The two
-- cannot log in until somebody allows it:  ALTER ROLE metrics_writer LOGIN PASSWORD '…'
--
-- Roles belong to the whole cluster, which other databases share, so existing roles are not changed. Where creating
-- them is not permitted, create them by other means and run `metrics-ingest migrate` again: it ends with grant_to_roles().

DO $block$
BEGIN
    IF to_regrole('metrics_writer') IS NULL THEN
        CREATE ROLE metrics_writer NOLOGIN;
        ALTER ROLE metrics_writer SET statement_timeout = '60s';  -- more than WRITE_TIMEOUT_S, after which no client waits
        ALTER ROLE metrics_writer SET idle_in_transaction_session_timeout = '30s';
    END IF;
    IF to_regrole('metrics_reader') IS NULL THEN
        CREATE ROLE metrics_reader NOLOGIN;
        ALTER ROLE metrics_reader SET statement_timeout = '5min';
        ALTER ROLE metrics_reader SET idle_in_transaction_session_timeout = '60s';
        ALTER ROLE metrics_reader SET default_transaction_read_only = on;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'creating roles is not permitted: create metrics_writer and metrics_reader, then migrate again';
    WHEN duplicate_object OR unique_violation THEN
        NULL;  -- the migration of another database has created them at the same moment
END
$block$;

-- Whoever can create an operator in the schema of a SECURITY DEFINER function can run code as its owner (CVE-2018-1058).
-- PostgreSQL 15 and newer start with this revoked; a database created by an older version may not.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
