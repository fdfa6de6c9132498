-- Summaries as Citus needs them (see functions/refresh_summaries.sql). The nodes merge the metrics of their users into the
-- rollups of these users' sessions and days, which are distributed like metrics. The rollup of hours is on the coordinator.

-- The numbers that may have been taken, as in the plain version: a row for each node, because Citus gives each node its own
-- part of the sequence.
CREATE OR REPLACE FUNCTION arrivals_taken(OUT first bigint, OUT next bigint) RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    sequence CONSTANT text := $sql$
        SELECT to_json(ARRAY[min_value, coalesce(last_value + 1, min_value)]) FROM pg_sequences
        WHERE schemaname = 'public' AND sequencename = 'metrics_arrival_seq' $sql$;
    answer json;
BEGIN
    FOR answer IN SELECT answers_of_all_nodes(sequence) LOOP
        CONTINUE WHEN answer IS NULL;  -- a node without tables: they are not distributed yet
        first := answer ->> 0;
        next := answer ->> 1;
        RETURN NEXT;
    END LOOP;
END
$function$;

-- The JSON value that a query returns on each node. Raises io_error when a node does not answer.
CREATE OR REPLACE FUNCTION answers_of_all_nodes(query text) RETURNS SETOF json
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    node record;
BEGIN
    FOR node IN SELECT * FROM run_command_on_all_nodes(query) LOOP
        IF NOT node.success THEN
            RAISE EXCEPTION 'node % does not answer: %', node.nodeid, node.result USING ERRCODE = 'io_error';
        END IF;
        RETURN NEXT CASE WHEN node.result <> '' THEN node.result::json END;
    END LOOP;
END
$function$;

-- As the plain version, on all nodes. A transaction holds its lock on the node where it took its numbers until it has
-- committed everywhere. If that node is lost meanwhile, other nodes have a prepared transaction until Citus recovers it.
CREATE OR REPLACE FUNCTION writers_ended(parent regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    -- What each query finds at first must be gone later; what comes meanwhile has taken later numbers.
    queries CONSTANT text[] := ARRAY[
        format($sql$SELECT json_agg(virtualtransaction) FROM pg_locks
                    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = to_regclass('%s')
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())$sql$, parent),
        'SELECT json_agg(gid) FROM pg_prepared_xacts WHERE database = current_database()'];
    query text;
    held  text[];  -- each after the number of its node
    found text[];
    since timestamptz := clock_timestamp();
BEGIN
    FOREACH query IN ARRAY queries LOOP
        held := NULL;
        LOOP
            found := ARRAY(
                SELECT concat(node, ' ', item)
                FROM answers_of_all_nodes(query) WITH ORDINALITY AS answer (items, node), json_array_elements_text(items) AS item
                WHERE held IS NULL OR concat(node, ' ', item) = ANY (held));
            held := found;
            EXIT WHEN cardinality(held) = 0;
            IF clock_timestamp() - since > interval '0.2 s' THEN RETURN false; END IF;
            PERFORM pg_sleep(0.01);
        END LOOP;
    END LOOP;
    RETURN true;
END
$function$;

-- As the plain version, in a statement for each rollup, because Citus runs no data-modifying WITH on the nodes. Each statement
-- has snapshots of its own, so that all merge the same metrics only if no number is stored meanwhile: unless `settled`, only the
-- numbers that are visible before the first one are merged.
CREATE OR REPLACE FUNCTION merge_metrics(
    earliest bigint, latest bigint, wanted int8multirange, settled boolean, raw_since timestamptz,
    OUT metrics bigint, OUT sessions bigint, OUT user_days bigint, OUT type_hours bigint, OUT seen int8multirange
) LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    fresh CONSTANT text := 'metrics WHERE arrival >= $1 AND arrival <= $2 AND $3 @> arrival AND timestamp >= $4';
    parts CONSTANT text := $sql$
        count(*) AS metric_count, sum(value::text::numeric) AS exact_total, min(value) AS lowest, max(value) AS highest,
        count(*) FILTER (WHERE value <> 0) AS true_count, min(timestamp) AS first_at, max(timestamp) AS last_at,
        min(ARRAY[date_part('epoch', timestamp), value]) AS first, max(ARRAY[date_part('epoch', timestamp), value]) AS last $sql$;
    columns CONSTANT text := $sql$
        metric_count, total, lowest, highest, true_count, first_at, first_value, last_at, last_value, exact_total $sql$;
    sums CONSTANT text := $sql$
        metric_count, nearest_float8(exact_total), lowest, highest, true_count, first_at, first[2], last_at, last[2], exact_total $sql$;
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
            exact_total = coalesce(known.exact_total, known.total::text::numeric) + excluded.exact_total $sql$;
BEGIN
    IF NOT settled THEN
        EXECUTE 'SELECT range_agg(int8range(arrival, arrival, ''[]'')) FROM metrics
                 WHERE arrival >= $1 AND arrival <= $2 AND $3 @> arrival' INTO seen USING earliest, latest, wanted;
        wanted := coalesce(seen, '{}');
    END IF;
    EXECUTE 'INSERT INTO session_rollup AS known (user_id, session_id, metric_type, ' || columns || ')
             SELECT user_id, session_id, metric_type, ' || sums || ' FROM (
                 SELECT user_id, session_id, metric_type, ' || parts || ' FROM ' || fresh || '
                 GROUP BY user_id, session_id, metric_type) AS part
             ON CONFLICT (user_id, session_id, metric_type) ' || merge USING earliest, latest, wanted, raw_since;
    GET DIAGNOSTICS sessions = ROW_COUNT;
    EXECUTE 'INSERT INTO user_day_rollup AS known (user_id, day, metric_type, ' || columns || ')
             SELECT user_id, day, metric_type, ' || sums || ' FROM (
                 SELECT user_id, (timestamp AT TIME ZONE ''UTC'')::date AS day, metric_type, ' || parts || ' FROM ' || fresh || '
                 GROUP BY user_id, (timestamp AT TIME ZONE ''UTC'')::date, metric_type) AS part
             ON CONFLICT (user_id, day, metric_type) ' || merge USING earliest, latest, wanted, raw_since;
    GET DIAGNOSTICS user_days = ROW_COUNT;
    -- The nodes group by user and hour, the coordinator by hour.
    EXECUTE 'WITH part AS MATERIALIZED (
                 SELECT metric_type, hour, sum(metric_count)::bigint AS metric_count, sum(exact_total) AS exact_total,
                        min(lowest) AS lowest, max(highest) AS highest, sum(true_count)::bigint AS true_count,
                        min(first_at) AS first_at, max(last_at) AS last_at,
                        pair_of_text(min(text_of_pair(first) COLLATE "C")) AS first,
                        pair_of_text(max(text_of_pair(last) COLLATE "C")) AS last
                 FROM (SELECT user_id, metric_type, date_trunc(''hour'', timestamp, ''UTC'') AS hour, ' || parts || '
                       FROM ' || fresh || '
                       GROUP BY user_id, metric_type, date_trunc(''hour'', timestamp, ''UTC'')) AS of_users
                 GROUP BY metric_type, hour)
             INSERT INTO type_hour_rollup AS known (metric_type, hour, ' || columns || ')
             SELECT metric_type, hour, ' || sums || ' FROM part
             ON CONFLICT (metric_type, hour) ' || merge USING earliest, latest, wanted, raw_since;
    GET DIAGNOSTICS type_hours = ROW_COUNT;
    EXECUTE 'SELECT count(*) FROM ' || fresh INTO metrics USING earliest, latest, wanted, raw_since;
END
$function$;

-- A time and a value as text that sorts like the pair: Citus finds the least of texts on the nodes, but not of arrays. Each number
-- is the bits of the float8, with all bits of a negative one inverted. Minus zero sorts like zero.
CREATE OR REPLACE FUNCTION text_of_pair(pair float8[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp SET extra_float_digits = 1 AS $function$
BEGIN
    RETURN (SELECT string_agg(CASE WHEN number >= 0 THEN '1' || encode(float8send(number + 0), 'hex')
                                   ELSE '0' || translate(encode(float8send(number), 'hex'), '0123456789abcdef', 'fedcba9876543210')
                              END, '' ORDER BY position)
            FROM unnest(pair) WITH ORDINALITY AS numbers (number, position)) || pair::text;
END
$function$;

CREATE OR REPLACE FUNCTION pair_of_text(pair text) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RETURN substring(pair FROM 35);
END
$function$;

-- Nothing to do: autovacuum of the nodes keeps their block-range indexes.
CREATE OR REPLACE FUNCTION summarize_arrivals() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
END
$function$;

-- As the plain version, for the part of the sequence of each node.
CREATE OR REPLACE FUNCTION restart_summaries(raw_since timestamptz) RETURNS int8multirange
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RAISE WARNING 'the sequence metrics_arrival_seq is behind the summaries: everything is summarised again';
    PERFORM answers_of_all_nodes($sql$
        SELECT setval('public.metrics_arrival_seq',
                      greatest(coalesce(last_value, min_value), (SELECT max(arrival) + 1 FROM public.metrics
                                                                 WHERE arrival BETWEEN min_value AND max_value)))
        FROM pg_sequences WHERE schemaname = 'public' AND sequencename = 'metrics_arrival_seq' $sql$);
    DELETE FROM session_rollup WHERE last_at >= raw_since;
    DELETE FROM user_day_rollup WHERE day >= (raw_since AT TIME ZONE 'UTC')::date;
    DELETE FROM type_hour_rollup WHERE hour >= raw_since;
    RETURN '{[1,)}';
END
$function$;
