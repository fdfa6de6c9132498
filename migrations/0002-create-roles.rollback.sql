-- The roles themselves stay, because they belong to the whole cluster: other databases and logins may depend on them.

DO $block$
BEGIN
    IF to_regrole('metrics_writer') IS NOT NULL THEN
        REVOKE USAGE ON SCHEMA public FROM metrics_writer;
    END IF;
    IF to_regrole('metrics_reader') IS NOT NULL THEN
        ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM metrics_reader;
        REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM metrics_reader;
        REVOKE USAGE ON SCHEMA public FROM metrics_reader;
    END IF;
END
$block$;
