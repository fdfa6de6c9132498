-- Who may do what in the database (SECURITY.md, The database). The owner is whoever runs the migrations. The other two
-- cannot log in until someone who may lets them:  ALTER ROLE metrics_writer LOGIN PASSWORD '…'
--
-- Roles belong to the whole cluster: other databases may share these, and a managed PostgreSQL may want them made by other
-- means. So those that exist stay as they are, and where none can be made, the next `metrics-ingest migrate` after
-- somebody has made them gives them their rights.

DO $block$
DECLARE
    settings text[][] := ARRAY[
        ['metrics_writer', 'statement_timeout', '60s'],  -- beyond WRITE_TIMEOUT_S nobody waits for the answer
        ['metrics_writer', 'idle_in_transaction_session_timeout', '30s'],
        ['metrics_reader', 'statement_timeout', '5min'],
        ['metrics_reader', 'idle_in_transaction_session_timeout', '60s'],
        ['metrics_reader', 'default_transaction_read_only', 'on']];
    wanted   text;
    setting  text[];
BEGIN
    FOREACH wanted IN ARRAY ARRAY['metrics_writer', 'metrics_reader'] LOOP
        CONTINUE WHEN to_regrole(wanted) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            FOREACH setting SLICE 1 IN ARRAY settings LOOP
                IF setting[1] = wanted THEN
                    EXECUTE format('ALTER ROLE %I SET %I = %L', VARIADIC setting);
                END IF;
            END LOOP;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role % is not made: not permitted; make it and migrate again', wanted;
            WHEN duplicate_object OR unique_violation THEN  -- another database was migrated at the same moment
                NULL;
        END;
    END LOOP;
END
$block$;

-- Whoever can create an operator where a SECURITY DEFINER function looks for one can become its owner (CVE-2018-1058).
-- PostgreSQL 15 and newer begin like this; a database from before may not.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- What later migrations create is for nobody unless they say so; but the reader may read all tables.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- Gives the two roles, where they exist, what they need; every `metrics-ingest migrate` ends with it. The writer may call
-- the owner's SECURITY DEFINER functions and do nothing else, the reader may read, and call the
-- IMMUTABLE functions that views are made of.
CREATE FUNCTION grant_to_roles() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $function$
DECLARE
    callable regprocedure;
BEGIN
    IF to_regrole('metrics_writer') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA public TO metrics_writer;
        FOR callable IN
            SELECT oid FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND prosecdef AND pg_get_userbyid(proowner) = current_user
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO metrics_writer', callable);
        END LOOP;
    END IF;
    IF to_regrole('metrics_reader') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA public TO metrics_reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO metrics_reader;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO metrics_reader;
        FOR callable IN
            SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND provolatile = 'i'
                AND pg_get_userbyid(proowner) = current_user
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO metrics_reader', callable);
        END LOOP;
    END IF;
END
$function$;
