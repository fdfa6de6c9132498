-- Stores a batch of complete metrics, given as columns: arrays of one length, without NULLs (docs/architecture.md).
-- new_sessions has, for each metric, whether its session may have to be created, or its start_time be moved back to the
-- metric's; an empty array means neither. It is a hint: a session that is missing nevertheless violates a foreign key, and
-- the slow path creates it.
--
-- Returns NULL when every metric was stored, else a JSON array with one object for each fault, positions from 1:
--   {"position", "outcome": "unknown_user" | "unknown_metric_type" | "value_out_of_range" | "duplicate" | "metric_conflict"}
-- A fault of the type has retired, flag, min and max, for the message. A duplicate or conflict has "repeat": true when an
-- earlier metric of the same batch has the same identity.
--
-- The fast path, insert_metrics, looks up neither users nor duplicates, and so costs a third less. When one violates a
-- constraint, it is undone. Then report_or_store_metrics looks for what is stored already, and leaves the others to the slow
-- path, check_and_store_metrics. functions/citus has another version.
-- A lone metric has a fast path of its own, insert_metric, which needs no savepoint.
CREATE OR REPLACE FUNCTION store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    being_erased uuid[];
BEGIN
    -- Lock the tables in the order users, sessions, metrics, as migrations and maintenance do. Without this, the checks of
    -- foreign keys would lock them in the opposite order, and migrations and maintenance would fail with deadlocks.
    PERFORM FROM users WHERE false;
    DELETE FROM sessions WHERE false;
    IF EXISTS (SELECT FROM user_erasures) THEN
        being_erased := ARRAY(SELECT user_id FROM user_erasures);
        IF being_erased && user_ids THEN  -- the slow path refuses their metrics
            RETURN check_and_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers,
                                           ARRAY(SELECT generate_series(1, cardinality(user_ids))));
        END IF;
    END IF;
    IF cardinality(user_ids) = 1 THEN
        IF insert_metric(user_ids[1], timestamps[1], metric_ids[1], session_ids[1], types[1], numbers[1], new_sessions[1]) THEN
            RETURN NULL;
        END IF;
        RETURN report_or_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers);
    END IF;
    BEGIN
        RETURN insert_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers, new_sessions);
    EXCEPTION WHEN unique_violation OR foreign_key_violation THEN
        RETURN report_or_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers);
    END;
END
$function$;

-- Reports the valid metrics that are stored already, just as they are sent, and stores or reports the others by the slow path.
-- Mostly all are, because a client sends a whole batch again; then it costs a sixth of the slow path. Arguments and result as
-- above. VOLATILE and SET: see check_and_store_metrics. LIMIT makes each one a look-up by the key, whatever the statistics.
CREATE OR REPLACE FUNCTION report_or_store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[]
) RETURNS json LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off SET jit = off
AS $function$
DECLARE
    earliest   timestamptz := (SELECT min(timestamp) FROM unnest(timestamps) AS timestamp);
    latest     timestamptz := (SELECT max(timestamp) FROM unnest(timestamps) AS timestamp);
    stored     bigint[];  -- positions
    duplicates json;
    others     json;
BEGIN
    SELECT array_agg(position), json_agg(json_build_object('position', position, 'outcome', 'duplicate', 'repeat', repeat))
    INTO stored, duplicates
    FROM (SELECT position, row_number() OVER (PARTITION BY user_id, timestamp, metric_id ORDER BY position) > 1 AS repeat
          FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
               WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
          JOIN metric_types AS type ON type.metric_type = sent.metric_type,
               LATERAL (SELECT FROM metrics
                        WHERE metrics.user_id = sent.user_id AND metrics.timestamp = sent.timestamp
                          AND metrics.metric_id = sent.metric_id AND metrics.session_id = sent.session_id
                          AND metrics.metric_type = sent.metric_type AND metrics.value = sent.value
                          AND metrics.timestamp BETWEEN earliest AND latest LIMIT 1) AS found  -- leaves partitions out
          WHERE metric_fault(kind, min_value, max_value, retired_at, sent.value) IS NULL) AS known;
    IF cardinality(stored) = cardinality(user_ids) THEN
        RETURN duplicates;
    END IF;
    SELECT check_and_store_metrics(array_agg(user_id), array_agg(timestamp), array_agg(metric_id), array_agg(session_id),
                                   array_agg(metric_type), array_agg(value), array_agg(position))
    INTO others
    FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
         WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
    WHERE NOT EXISTS (SELECT FROM unnest(stored) AS known (position) WHERE known.position = sent.position);
    RETURN (SELECT json_agg(outcome) FROM (SELECT json_array_elements(duplicates)
                                           UNION ALL SELECT json_array_elements(others)) AS outcomes (outcome));
END
$function$;

-- Inserts the metrics whose type and value are valid; arguments and result as above. Raises unique_violation for a metric
-- stored already, foreign_key_violation for an unknown user or session. Has no SET, which takes 1 µs: store_metrics has.
CREATE OR REPLACE FUNCTION insert_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql AS $function$
DECLARE
    stored  integer;
    refused bigint[];  -- positions
BEGIN
    IF cardinality(new_sessions) > 0 THEN
        INSERT INTO sessions AS existing (user_id, session_id, start_time)
        SELECT sent.user_id, sent.session_id, min(sent.timestamp)
        FROM unnest(user_ids, timestamps, session_ids, types, numbers, new_sessions)
             AS sent (user_id, timestamp, session_id, metric_type, value, is_new)
        JOIN metric_types AS type ON type.metric_type = sent.metric_type
        WHERE sent.is_new AND metric_fault(kind, min_value, max_value, retired_at, sent.value) IS NULL
        GROUP BY sent.user_id, sent.session_id ORDER BY sent.user_id, sent.session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET start_time = excluded.start_time
            WHERE excluded.start_time < existing.start_time;
    END IF;

    -- Rows are inserted in key order, because two overlapping batches in different orders would deadlock.
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
    SELECT sent.user_id, sent.timestamp, sent.metric_id, sent.session_id, sent.metric_type, sent.value
    FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
         AS sent (user_id, timestamp, metric_id, session_id, metric_type, value)
    JOIN metric_types AS type ON type.metric_type = sent.metric_type
    WHERE metric_fault(kind, min_value, max_value, retired_at, sent.value) IS NULL
    ORDER BY sent.user_id, sent.timestamp, sent.metric_id;
    GET DIAGNOSTICS stored = ROW_COUNT;

    IF stored < cardinality(user_ids) THEN  -- the slow path finds out why
        refused := ARRAY(
            SELECT position
            FROM unnest(types, numbers) WITH ORDINALITY AS sent (metric_type, value, position)
            LEFT JOIN metric_types AS type USING (metric_type)
            WHERE metric_fault(kind, min_value, max_value, retired_at, value) IS NOT NULL);
        IF stored + cardinality(refused) <> cardinality(user_ids) THEN
            RAISE EXCEPTION 'a metric type has changed meanwhile' USING ERRCODE = 'serialization_failure';  -- try again
        END IF;
        RETURN (
            SELECT check_and_store_metrics(array_agg(user_id), array_agg(timestamp), array_agg(metric_id),
                                           array_agg(session_id), array_agg(metric_type), array_agg(value),
                                           array_agg(position))
            FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
                 WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
            WHERE position = ANY (refused));
    END IF;
    RETURN NULL;
END
$function$;

-- Inserts a metric, and returns true; or returns false when the slow path has to find out what is wrong. What could violate a
-- constraint is looked up and locked, as the constraint would do. So it needs no savepoint, whose transaction id of its own
-- would use up transaction ids twice as fast. Has no SET, as insert_metrics.
CREATE OR REPLACE FUNCTION insert_metric(
    sender uuid, sent_at timestamptz, new_id uuid, session uuid, type text, number float8, is_new boolean
) RETURNS boolean LANGUAGE plpgsql AS $function$
BEGIN
    PERFORM FROM metric_types
    WHERE metric_type = type AND metric_fault(kind, min_value, max_value, retired_at, number) IS NULL;
    IF NOT FOUND THEN RETURN false; END IF;
    IF is_new THEN
        PERFORM FROM users WHERE user_id = sender FOR KEY SHARE;
        IF NOT FOUND THEN RETURN false; END IF;
        INSERT INTO sessions AS existing (user_id, session_id, start_time) VALUES (sender, session, sent_at)
        ON CONFLICT (user_id, session_id) DO UPDATE SET start_time = excluded.start_time
            WHERE excluded.start_time < existing.start_time;
    ELSE
        PERFORM FROM sessions WHERE user_id = sender AND session_id = session FOR KEY SHARE;
        IF NOT FOUND THEN RETURN false; END IF;
    END IF;
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
    VALUES (sender, sent_at, new_id, session, type, number) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$function$;
