-- Back to the function of 0002.

CREATE OR REPLACE FUNCTION create_metrics_partitions(months_ahead integer) RETURNS integer
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
