-- Brings the rollups up to date, in one transaction. Returns counts. `metrics-ingest summaries refresh` calls the steps
-- instead, each in a transaction of its own.
CREATE OR REPLACE FUNCTION refresh_summaries() RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    step       json := '{"next": 0}';
    metrics    bigint := 0;
    sessions   bigint := 0;
    user_days  bigint := 0;
    type_hours bigint := 0;
BEGIN
    WHILE step ->> 'next' IS NOT NULL LOOP
        step := refresh_summaries_step((step ->> 'next')::bigint);
        metrics := metrics + (step ->> 'metrics')::bigint;
        sessions := sessions + (step ->> 'sessions')::bigint;
        user_days := user_days + (step ->> 'user_days')::bigint;
        type_hours := type_hours + (step ->> 'type_hours')::bigint;
    END LOOP;
    RETURN json_build_object('metrics', metrics, 'sessions', sessions, 'user_days', user_days, 'type_hours', type_hours);
END
$function$;

-- One step of a refresh: merges at most 200,000 new metrics with an `arrival` above the given one into the rollups; after the
-- last of them, recomputes hours from which metrics were erased. Returns how many metrics were new, how many rows of each
-- rollup have changed, and `next`: the argument of the next step, NULL after the last. The first step's argument is 0.
--
-- Every metric is merged exactly once, so nothing has to be counted again: counts, extremes and decimal sums are the same
-- in whatever order metrics are merged. Which are new? summary_state.unseen has the numbers (metrics.arrival) that are not
-- in the rollups. A number is taken out of it when its metric is merged, or when the transactions that could still store it
-- have ended: every writer locks `metrics` before it takes a number. A transaction that stays open keeps numbers in
-- `unseen`, but does not delay other metrics.
--
-- enable_seqscan: the plan must not depend on statistics, which autovacuum does not keep for partitioned tables.
CREATE OR REPLACE FUNCTION refresh_summaries_step(after bigint) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET jit = off
SET extra_float_digits = 1 SET enable_seqscan = off SET work_mem = '32MB' AS $function$
DECLARE
    most     CONSTANT integer := 200000;  -- numbers, and so metrics, of a step: bounds its memory (32 MB a sort) and time (1 s)
    state    summary_state;
    taken    int8multirange;  -- the numbers that were taken from the sequence
    behind   boolean;         -- whether the sequence will give numbers that are in the rollups already
    wanted   int8multirange;  -- the numbers of this step
    later    int8multirange;  -- those of the steps after it
    latest   bigint;          -- the last number of this step
    settled  boolean;         -- whether none of them can still be stored
    seen     int8multirange;  -- the numbers of the metrics that were merged
    metrics    bigint := 0;
    sessions   bigint := 0;
    user_days  bigint := 0;
    type_hours bigint := 0;
    hours_repaired bigint := 0;
    more_repairs   boolean := false;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a refresh of the summaries needs a READ COMMITTED transaction' USING ERRCODE = 'active_sql_transaction';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('metrics-ingest summaries'));
    SELECT * INTO STRICT state FROM summary_state;
    -- Before the metrics are read: a number that is taken later belongs to the next step.
    SELECT range_agg(int8range(first, next)), bool_or(NOT state.unseen @> next) INTO taken, behind FROM arrivals_taken();
    IF behind THEN
        state.unseen := restart_summaries(state.raw_since);
        SELECT range_agg(int8range(first, next)) INTO taken FROM arrivals_taken();
    END IF;

    wanted := state.unseen * taken * int8multirange(int8range(after, NULL, '()'));
    latest := lower(wanted) + most - 1;
    later := wanted * int8multirange(int8range(latest, NULL, '()'));
    IF NOT isempty(wanted) THEN
        IF after = 0 AND upper(wanted) - lower(wanted) > 10 * most THEN
            PERFORM summarize_arrivals();
        END IF;
        wanted := wanted - later;
        settled := writers_ended('public.metrics');  -- before the statement that reads the metrics
        SELECT * INTO metrics, sessions, user_days, type_hours, seen
        FROM merge_metrics(lower(wanted), latest, wanted, settled, state.raw_since);
        state.unseen := state.unseen - CASE WHEN settled THEN wanted ELSE coalesce(seen, '{}') END;
    END IF;
    IF latest IS NULL OR isempty(later) THEN
        latest := NULL;
        SELECT repaired, more INTO hours_repaired, more_repairs FROM repair_hours(state.unseen, state.raw_since);
        IF more_repairs THEN latest := upper(taken); END IF;
    END IF;

    UPDATE summary_state SET unseen = state.unseen,
                             refreshed_at = CASE WHEN latest IS NULL THEN now() ELSE refreshed_at END;
    RETURN json_build_object('metrics', metrics, 'sessions', sessions, 'user_days', user_days,
                             'type_hours', type_hours + hours_repaired, 'next', latest);
END
$function$;

-- The numbers of the sequence that may have been taken: those from `first` to before `next`, the number that it gives next.
-- functions/citus has another version, with a row for each node.
CREATE OR REPLACE FUNCTION arrivals_taken(OUT first bigint, OUT next bigint) RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RETURN QUERY SELECT 1::bigint, coalesce(pg_sequence_last_value('public.metrics_arrival_seq'), 0) + 1;
END
$function$;

-- Merges the metrics whose `arrival` is wanted, all between earliest and latest, into the rollups. Returns counts, and the
-- numbers of the metrics that were visible. `settled`: none of these numbers can still be stored (only the version for Citus
-- asks). Of metrics with the same time, the first is the one with the least value, the last the one with the greatest. Metrics
-- older than raw_since are left out, because retention may have dropped others of that time, and duplicates of these cannot
-- be recognised.
DROP FUNCTION IF EXISTS merge_metrics(bigint, bigint, int8multirange, timestamptz);  -- as it was before
CREATE OR REPLACE FUNCTION merge_metrics(
    earliest bigint, latest bigint, wanted int8multirange, settled boolean, raw_since timestamptz,
    OUT metrics bigint, OUT sessions bigint, OUT user_days bigint, OUT type_hours bigint, OUT seen int8multirange
) LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    -- A time with its value is an array of two numbers, because its least and greatest can be found without sorting.
    aggregates CONSTANT text := $sql$
        sum(metric_count)::bigint, nearest_float8(sum(exact_total)), min(lowest), max(highest), sum(true_count)::bigint,
        min(first_at), (min(first))[2], max(last_at), (max(last))[2], sum(exact_total) $sql$;
    merge CONSTANT text := $sql$
        DO UPDATE SET metric_count = known.metric_count + excluded.metric_count,
            total = nearest_float8(coalesce(known.exact_total, known.total::text::numeric) + excluded.exact_total),
            lowest = least(known.lowest, excluded.lowest), highest = greatest(known.highest, excluded.highest),
            true_count = known.true_count + excluded.true_count,
            first_at = least(known.first_at, excluded.first_at),
            first_value = CASE WHEN (excluded.first_at, excluded.first_value) < (known.first_at, known.first_value)
                               THEN excluded.first_value ELSE known.first_value END,
            last_at = greatest(known.last_at, excluded.last_at),
            last_value = CASE WHEN (excluded.last_at, excluded.last_value) > (known.last_at, known.last_value)
                              THEN excluded.last_value ELSE known.last_value END,
            exact_total = coalesce(known.exact_total, known.total::text::numeric) + excluded.exact_total
        RETURNING 1 $sql$;
BEGIN
    EXECUTE $sql$
        WITH fresh AS MATERIALIZED (
            SELECT user_id, session_id, metric_type, timestamp, value, arrival,
                   ARRAY[date_part('epoch', timestamp), value] AS at_value
            FROM metrics
            WHERE arrival >= $1 AND arrival <= $2 AND $3 @> arrival
        ),
        part AS MATERIALIZED (
            SELECT user_id, session_id, metric_type, date_trunc('hour', timestamp) AS hour, count(*) AS metric_count,
                   sum(value::text::numeric) AS exact_total, min(value) AS lowest, max(value) AS highest,
                   count(*) FILTER (WHERE value <> 0) AS true_count, min(timestamp) AS first_at, max(timestamp) AS last_at,
                   min(at_value) AS first, max(at_value) AS last
            FROM fresh WHERE timestamp >= $4 GROUP BY user_id, session_id, metric_type, date_trunc('hour', timestamp)
        ),
        session AS (
            INSERT INTO session_rollup AS known
            SELECT user_id, session_id, metric_type, $sql$ || aggregates || $sql$ FROM part
            GROUP BY user_id, session_id, metric_type
            ON CONFLICT (user_id, session_id, metric_type) $sql$ || merge || $sql$
        ),
        day AS (
            INSERT INTO user_day_rollup AS known
            SELECT user_id, hour::date, metric_type, $sql$ || aggregates || $sql$ FROM part
            GROUP BY user_id, hour::date, metric_type
            ON CONFLICT (user_id, day, metric_type) $sql$ || merge || $sql$
        ),
        hour AS (
            INSERT INTO type_hour_rollup AS known
            SELECT metric_type, hour, $sql$ || aggregates || $sql$ FROM part GROUP BY metric_type, hour
            ON CONFLICT (metric_type, hour) $sql$ || merge || $sql$
        )
        SELECT (SELECT coalesce(sum(metric_count), 0) FROM part), (SELECT count(*) FROM session), (SELECT count(*) FROM day),
               (SELECT count(*) FROM hour), (SELECT range_agg(int8range(arrival, arrival, '[]')) FROM fresh)
    $sql$ INTO metrics, sessions, user_days, type_hours, seen USING earliest, latest, wanted, raw_since;
END
$function$;

-- Waits up to 50 ms until the transactions that now write to a table have ended; returns whether they have. Transactions of
-- other databases, and those that write other tables, do not count. A metric whose number is taken before this is called
-- is visible, or will never be, when this has returned true.
CREATE OR REPLACE FUNCTION writers_ended(parent regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    tables  oid[] := ARRAY(SELECT relid FROM pg_partition_tree(parent));
    writers text[];
    since   timestamptz := clock_timestamp();
BEGIN
    LOOP
        writers := ARRAY(
            SELECT virtualtransaction FROM pg_locks
            WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = ANY (tables)
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND pid IS DISTINCT FROM pg_backend_pid() AND (writers IS NULL OR virtualtransaction = ANY (writers)));
        IF cardinality(writers) = 0 THEN RETURN true; END IF;
        IF clock_timestamp() - since > interval '50 ms' THEN RETURN false; END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
END
$function$;

-- Brings the block-range indexes up to date before a large backlog is read in steps: a block range that is in no index is read
-- by each step. Autovacuum does this too, but a minute later. Leaves out a table that is being maintained.
CREATE OR REPLACE FUNCTION summarize_arrivals() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '100ms' AS $function$
DECLARE
    index regclass;
BEGIN
    FOR index IN
        SELECT indexrelid FROM pg_partition_tree('public.metrics') JOIN pg_index ON indrelid = relid
        JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam WHERE isleaf AND amname = 'brin'
    LOOP
        BEGIN
            PERFORM brin_summarize_new_values(index);
        EXCEPTION WHEN lock_not_available OR undefined_table THEN
            NULL;
        END;
    END LOOP;
END
$function$;

-- Recomputes hours of summary_repairs, from which metrics were erased, until 0.5 s have passed. Returns how many rows of
-- type_hour_rollup, and whether hours are left. Counts the metrics that were merged before, no others. Hours whose metrics
-- retention has dropped cannot be recomputed, and stay.
CREATE OR REPLACE FUNCTION repair_hours(unseen int8multirange, raw_since timestamptz, OUT repaired bigint, OUT more boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    repair record;
    since  timestamptz := clock_timestamp();
BEGIN
    repaired := 0;
    more := false;
    FOR repair IN SELECT hour, array_agg(metric_type) AS types FROM summary_repairs GROUP BY hour LOOP
        more := clock_timestamp() - since > interval '0.5 s';
        EXIT WHEN more;
        DELETE FROM summary_repairs WHERE hour = repair.hour AND metric_type = ANY (repair.types);
        CONTINUE WHEN repair.hour < raw_since;
        DELETE FROM type_hour_rollup WHERE hour = repair.hour AND metric_type = ANY (repair.types);
        INSERT INTO type_hour_rollup
        SELECT metric_type, repair.hour, count(*), nearest_float8(sum(value::text::numeric)), min(value), max(value),
               count(*) FILTER (WHERE value <> 0),
               min(timestamp), (min(ARRAY[date_part('epoch', timestamp), value]))[2],
               max(timestamp), (max(ARRAY[date_part('epoch', timestamp), value]))[2], sum(value::text::numeric)
        FROM (
            SELECT metric_type, timestamp, value FROM metrics
            WHERE timestamp >= repair.hour AND timestamp < repair.hour + interval '1 hour' AND metric_type = ANY (repair.types)
              AND NOT unseen @> arrival
            OFFSET 0) AS metric  -- because Citus cannot find the least of arrays node by node
        GROUP BY metric_type;
        repaired := repaired + cardinality(repair.types);
    END LOOP;
END
$function$;

-- Empties the rollups, except for times whose metrics retention has dropped, so that everything is merged again. It is needed
-- where the sequence is behind the rollups, as in a logical replica that took over: numbers were taken twice.
-- Returns what is not in the rollups then: everything.
CREATE OR REPLACE FUNCTION restart_summaries(raw_since timestamptz) RETURNS int8multirange
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $function$
BEGIN
    RAISE WARNING 'the sequence metrics_arrival_seq is behind the summaries: everything is summarised again';
    PERFORM setval('public.metrics_arrival_seq', (SELECT coalesce(max(arrival), 0) + 1 FROM metrics));
    DELETE FROM session_rollup WHERE last_at >= raw_since;
    DELETE FROM user_day_rollup WHERE day >= raw_since;
    DELETE FROM type_hour_rollup WHERE hour >= raw_since;
    RETURN '{[1,)}';
END
$function$;
