-- The roles metrics_writer and metrics_reader (SECURITY.md, The database). Whoever runs the migrations is the owner. The two
-- cannot log in until somebody allows it:  ALTER ROLE metrics_writer LOGIN PASSWORD '…'
--
-- Roles belong to the whole cluster: other databases may use them, and a managed PostgreSQL may want them created by other
-- means. So existing roles are not changed. Where creating them is not permitted, create them by hand and run
-- `metrics-ingest migrate` again: it ends with grant_to_roles().

DO $block$
DECLARE
    settings text[][] := ARRAY[
        ['metrics_writer', 'statement_timeout', '60s'],  -- more than WRITE_TIMEOUT_S, after which no client waits
        ['metrics_writer', 'idle_in_transaction_session_timeout', '30s'],
        ['metrics_reader', 'statement_timeout', '5min'],
        ['metrics_reader', 'idle_in_transaction_session_timeout', '60s'],
        ['metrics_reader', 'default_transaction_read_only', 'on']];
    new_role text;
    setting  text[];
BEGIN
    FOREACH new_role IN ARRAY ARRAY['metrics_writer', 'metrics_reader'] LOOP
        CONTINUE WHEN to_regrole(new_role) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', new_role);
            FOREACH setting SLICE 1 IN ARRAY settings LOOP
                IF setting[1] = new_role THEN
                    EXECUTE format('ALTER ROLE %I SET %I = %L', VARIADIC setting);
                END IF;
            END LOOP;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'creating role % is not permitted: create it, then migrate again', new_role;
            WHEN duplicate_object OR unique_violation THEN  -- another database is being migrated at the same moment
                NULL;
        END;
    END LOOP;
END
$block$;

-- Whoever can create an operator in the schema of a SECURITY DEFINER function can run code as its owner (CVE-2018-1058).
-- PostgreSQL 15 and newer start with this revoked; a database created by an older version may not.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
