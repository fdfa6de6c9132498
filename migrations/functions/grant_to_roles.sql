-- Grants the two roles, where they exist, what they need; every `metrics-ingest migrate` ends with it. The writer may call
-- the owner's SECURITY DEFINER functions, nothing else. The reader may read every table and view, and call the
-- IMMUTABLE functions, because a view calls its functions with the rights of whoever reads it.
CREATE OR REPLACE FUNCTION grant_to_roles() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    own record;
BEGIN
    IF to_regrole('metrics_writer') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA public TO metrics_writer;
    END IF;
    IF to_regrole('metrics_reader') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA public TO metrics_reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO metrics_reader;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO metrics_reader;
    END IF;
    FOR own IN
        SELECT pg_proc.oid::regprocedure AS function, rolname AS role FROM pg_proc
        JOIN pg_roles ON rolname = 'metrics_writer' AND prosecdef OR rolname = 'metrics_reader' AND provolatile = 'i'
        WHERE pronamespace = 'public'::regnamespace AND pg_get_userbyid(proowner) = current_user
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', own.function, own.role);
    END LOOP;
END
$function$;
