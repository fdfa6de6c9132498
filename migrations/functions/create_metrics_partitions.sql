-- Creates the partitions of the current month and of the given number of months after it, in UTC, named metrics_pYYYY_MM.
-- Returns how many it created. A month with rows in metrics_default is left to `partitions maintain`, and so is one whose
-- name another table has.
--
-- Blocks writers while it attaches partitions. Otherwise an insert that waits for the default partition, which ATTACH locks,
-- would find that this no longer accepts its row, and fail with 23514; and ATTACH would fail on an uncommitted row, which
-- the check here does not see. sessions is locked first, as in store_metrics. metrics is locked against readers, too: one
-- that has planned without the new month, and waits for metrics_default, would miss the month's first rows. Requests queue
-- behind a lock that waits, so an attempt waits at most 0.1 s, then pauses eight times as long; all 70 take about a minute.
CREATE OR REPLACE FUNCTION create_metrics_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = 0 AS $function$
DECLARE
    missing   timestamptz[];
    month     timestamptz;
    partition text;
    owner     text := (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'public.metrics'::regclass);
    created   integer := 0;
BEGIN
    -- Looked for before waiting, so that a deployment does not wait for maintenance when no month is missing.
    IF NOT EXISTS (
        SELECT 1 FROM generate_series(0, months_ahead) AS ahead
        WHERE to_regclass('public.metrics_p' || to_char(date_trunc('month', now()) + make_interval(months => ahead), 'YYYY_MM'))
              IS NULL)
    THEN RETURN 0; END IF;
    PERFORM pg_advisory_xact_lock(hashtext('metrics-ingest partitions'));
    SELECT array_agg(start) INTO missing
    FROM generate_series(0, months_ahead) AS ahead,
         LATERAL (SELECT date_trunc('month', now()) + make_interval(months => ahead)) AS wanted (start)
    WHERE to_regclass('public.metrics_p' || to_char(start, 'YYYY_MM')) IS NULL;
    IF missing IS NULL THEN RETURN 0; END IF;

    PERFORM set_config('lock_timeout', '100ms', true);
    FOR attempt IN 1..70 LOOP
        BEGIN
            LOCK TABLE sessions IN SHARE ROW EXCLUSIVE MODE;
            LOCK TABLE ONLY metrics, metrics_default IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF attempt = 70 THEN RAISE; END IF;
            PERFORM pg_sleep(0.4 + random() * 0.8);
        END;
    END LOOP;

    FOREACH month IN ARRAY missing LOOP
        CONTINUE WHEN EXISTS (SELECT 1 FROM metrics_default  -- 1, because Citus refuses a SELECT without columns
                              WHERE timestamp >= month AND timestamp < month + interval '1 month');
        partition := 'metrics_p' || to_char(month, 'YYYY_MM');
        EXECUTE format('CREATE TABLE public.%I (LIKE public.metrics INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
        EXECUTE format('ALTER TABLE public.metrics ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', partition,
                       month, month + interval '1 month');
        IF owner <> current_user THEN  -- else that role could not migrate any more
            EXECUTE format('ALTER TABLE public.%I OWNER TO %I', partition, owner);
        END IF;
        created := created + 1;
    END LOOP;
    RETURN created;
END
$function$;
