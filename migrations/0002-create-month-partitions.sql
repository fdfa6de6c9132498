-- Makes the partitions of the current month and of the months ahead, in UTC, named metrics_pYYYY_MM.
-- Attaching takes a light lock on metrics, where CREATE TABLE ... PARTITION OF would stop all writing to it.
-- A month with rows in metrics_default is left there and not counted; draining them is maintenance.
-- Returns how many partitions were made.

CREATE FUNCTION create_metrics_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $function$
DECLARE
    month_start timestamp;
    partition   text;
    created     integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('metrics-ingest partitions'));
    FOR month_start IN
        SELECT generate_series(date_trunc('month', now()::timestamp),
                               date_trunc('month', now()::timestamp) + make_interval(months => months_ahead),
                               interval '1 month')
    LOOP
        partition := 'metrics_p' || to_char(month_start, 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
        CONTINUE WHEN EXISTS (SELECT FROM metrics_default
                              WHERE timestamp >= month_start AND timestamp < month_start + interval '1 month');
        EXECUTE format('CREATE TABLE public.%I (LIKE public.metrics INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
        EXECUTE format('ALTER TABLE public.metrics ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', partition,
                       to_char(month_start, 'YYYY-MM-DD"T00:00:00Z"'),
                       to_char(month_start + interval '1 month', 'YYYY-MM-DD"T00:00:00Z"'));
        created := created + 1;
    END LOOP;
    RETURN created;
END
$function$;

REVOKE ALL ON FUNCTION create_metrics_partitions(integer) FROM PUBLIC;
