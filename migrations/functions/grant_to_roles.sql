-- Grants the two roles, where they exist, what they need; every `metrics-ingest migrate` ends with it. The writer may call
-- the owner's SECURITY DEFINER functions, nothing else. The reader may read the owner's tables and views, and call the
-- IMMUTABLE functions, because a view calls its functions with the rights of whoever reads it. Tables of other owners in
-- the same schema are left out, one by one, because granting on one of them would fail as a whole.
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
        FOR own IN
            SELECT oid::regclass AS relation FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
              AND pg_get_userbyid(relowner) = current_user
              AND NOT has_table_privilege('metrics_reader', oid, 'SELECT')
        LOOP
            EXECUTE format('GRANT SELECT ON TABLE %s TO metrics_reader', own.relation);
        END LOOP;
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
