-- The set-based half of the write path (docs/architecture.md), in two functions. Both take a batch of complete metrics by
-- columns, arrays of one length without NULLs, and return NULL when every metric was stored, else a JSON array with one
-- object for each fault, positions from 1:
--   {"position", "outcome": "unknown_user" | "unknown_metric_type" | "value_out_of_range" | "duplicate" | "metric_conflict"}
-- with retired, flag, min and max where a detail needs them, and "repeat": true when an earlier metric of this very
-- batch has the same identity.
--
-- They take the place of ingest_metrics (0003), which stays for functions of before until they are gone, and unlike it they
-- run on Citus: no generic plan is asked for, and no distributed table is joined by LATERAL or read without its user_id.

-- Stores what can be stored and accounts for the rest: looks for everything that may be wrong.
CREATE FUNCTION store_doubtful_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[]
) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off
SET jit = off
AS $function$
DECLARE
    refused  json;
    inserted json;
    doubtful json;
    existing json;
BEGIN
    -- Everything is inserted in key order: two overlapping batches in different orders would deadlock.
    WITH known_user AS MATERIALIZED (
        SELECT user_id FROM users WHERE user_id = ANY (user_ids)
    ),
    item AS MATERIALIZED (
        SELECT sent.*,
               known_user.user_id IS NOT NULL AS user_known,
               kind.metric_type IS NOT NULL AND kind.retired_at IS NULL AS type_known,
               kind.retired_at, kind.kind, kind.min_value, kind.max_value,
               (sent.value < kind.min_value OR sent.value > kind.max_value
                   OR kind.kind = 'flag' AND sent.value NOT IN (0, 1)) IS TRUE AS out_of_range
        FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
             WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
        LEFT JOIN known_user ON known_user.user_id = sent.user_id
        LEFT JOIN metric_types AS kind ON kind.metric_type = sent.metric_type
    ),
    new_session AS (
        INSERT INTO sessions (user_id, session_id, start_time)
        SELECT user_id, session_id, min(timestamp)
        FROM item WHERE user_known AND type_known AND NOT out_of_range
        GROUP BY user_id, session_id ORDER BY user_id, session_id
        ON CONFLICT DO NOTHING
    ),
    stored AS (
        INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
        SELECT user_id, timestamp, metric_id, session_id, metric_type, value
        FROM item WHERE user_known AND type_known AND NOT out_of_range
        ORDER BY user_id, timestamp, metric_id, position
        ON CONFLICT DO NOTHING
        RETURNING user_id, timestamp, metric_id
    )
    SELECT (SELECT json_agg(item) FROM item WHERE NOT (user_known AND type_known AND NOT out_of_range)),
           (SELECT json_agg(stored) FROM stored)
    INTO refused, inserted;

    SELECT json_agg(sent) INTO doubtful
    FROM (SELECT *, row_number() OVER (PARTITION BY user_id, timestamp, metric_id ORDER BY position) > 1 AS repeat
          FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
               WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
          WHERE position NOT IN (SELECT position FROM json_to_recordset(refused) AS item (position bigint))) AS sent
    LEFT JOIN json_to_recordset(inserted) AS stored (user_id uuid, timestamp timestamptz, metric_id uuid)
        USING (user_id, timestamp, metric_id)
    WHERE sent.repeat OR stored.user_id IS NULL;

    -- A statement of its own, and so with a snapshot that sees what a concurrent transaction has committed meanwhile.
    IF to_regclass('pg_catalog.pg_dist_partition') IS NULL THEN
        SELECT json_agg(metric) INTO existing
        FROM json_to_recordset(doubtful) AS sent (user_id uuid, timestamp timestamptz, metric_id uuid),
             LATERAL (SELECT * FROM metrics
                      WHERE metrics.user_id = sent.user_id AND metrics.timestamp = sent.timestamp
                        AND metrics.metric_id = sent.metric_id LIMIT 1) AS metric;
    ELSE  -- Citus has no LATERAL across shards, and would fetch the whole table for a plain join
        SELECT json_agg(metric) INTO existing
        FROM (SELECT metrics.*
              FROM metrics
              JOIN (SELECT DISTINCT sent.* FROM json_to_recordset(doubtful)
                        AS sent (user_id uuid, timestamp timestamptz, metric_id uuid)) AS sent
                  USING (user_id, timestamp, metric_id)
              WHERE metrics.user_id = ANY (user_ids)) AS metric;
    END IF;

    RETURN (
        WITH fault AS (
            SELECT * FROM json_to_recordset(refused) AS item (
                position bigint, user_known boolean, type_known boolean, out_of_range boolean,
                retired_at timestamptz, kind text, min_value float8, max_value float8)
        )
        SELECT json_agg(outcome) FROM (
            SELECT json_build_object('position', position, 'outcome', 'unknown_user') FROM fault WHERE NOT user_known
            UNION ALL
            SELECT json_build_object('position', position, 'outcome', 'unknown_metric_type',
                                     'retired', retired_at IS NOT NULL)
            FROM fault WHERE NOT type_known
            UNION ALL
            SELECT json_build_object('position', position, 'outcome', 'value_out_of_range',
                                     'flag', kind = 'flag', 'min', min_value, 'max', max_value)
            FROM fault WHERE type_known AND out_of_range
            UNION ALL
            SELECT json_build_object('position', sent.position, 'repeat', sent.repeat, 'outcome', CASE
                WHEN metric.value IS NULL
                  OR (metric.session_id, metric.metric_type, metric.value)
                   = (sent.session_id, sent.metric_type, sent.value) THEN 'duplicate'
                ELSE 'metric_conflict' END)
            FROM json_to_recordset(doubtful) AS sent (
                user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid, metric_type text, value float8,
                position bigint, repeat boolean)
            LEFT JOIN (SELECT DISTINCT metric.* FROM json_to_recordset(existing) AS metric (
                user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid, metric_type text, value float8))
                AS metric USING (user_id, timestamp, metric_id)
        ) AS outcomes (outcome));
END
$function$;

-- Stores as if nothing could be wrong, and leaves it to the constraints to find what is: a third cheaper. A metric that is
-- there already, or one of a user who is not registered, violates one; then all of this is undone, and the other
-- function called. Retries and strangers are the exception.
--
-- new_sessions says of each metric whether its session may have to be made; empty, that all are there. It is a hint: a
-- session that is missing all the same violates its key.
CREATE FUNCTION store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $function$
DECLARE
    refused bigint[];
BEGIN
    -- Locks the tables in the order of their keys, sessions as for an insert, as migrations and maintenance do. Else the
    -- keys' checks would take them the other way round, and those would lose their turns to deadlocks, again and again.
    PERFORM FROM users WHERE false;
    DELETE FROM sessions WHERE false;

    BEGIN
        IF cardinality(new_sessions) > 0 THEN
            INSERT INTO sessions (user_id, session_id, start_time)
            SELECT sent.user_id, sent.session_id, min(sent.timestamp)
            FROM unnest(user_ids, timestamps, session_ids, types, numbers, new_sessions)
                 AS sent (user_id, timestamp, session_id, metric_type, value, is_new)
            JOIN metric_types AS kind ON kind.metric_type = sent.metric_type
            WHERE sent.is_new AND kind.retired_at IS NULL
              AND sent.value BETWEEN coalesce(kind.min_value, '-Infinity') AND coalesce(kind.max_value, 'Infinity')
              AND (kind.kind <> 'flag' OR sent.value IN (0, 1))
            GROUP BY sent.user_id, sent.session_id ORDER BY sent.user_id, sent.session_id
            ON CONFLICT DO NOTHING;
        END IF;

        WITH item AS MATERIALIZED (
            SELECT sent.*,
                   (kind.metric_type IS NOT NULL AND kind.retired_at IS NULL
                    AND sent.value BETWEEN coalesce(kind.min_value, '-Infinity') AND coalesce(kind.max_value, 'Infinity')
                    AND (kind.kind <> 'flag' OR sent.value IN (0, 1))) IS TRUE AS is_sound
            FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
                 WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
            LEFT JOIN metric_types AS kind ON kind.metric_type = sent.metric_type
        ),
        stored AS (
            INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
            SELECT user_id, timestamp, metric_id, session_id, metric_type, value
            FROM item WHERE is_sound ORDER BY user_id, timestamp, metric_id
        )
        SELECT array_agg(position ORDER BY position) INTO refused FROM item WHERE NOT is_sound;
    EXCEPTION WHEN unique_violation OR foreign_key_violation OR internal_error THEN  -- the last is what Citus makes of both
        RETURN store_doubtful_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers);
    END;

    IF refused IS NULL THEN
        RETURN NULL;
    END IF;

    -- What the registry of types refuses; everything else is stored. The other function says what is wrong, of these alone.
    RETURN (
        WITH told (outcomes) AS (
            SELECT store_doubtful_metrics(
                array_agg(user_id ORDER BY position), array_agg(timestamp ORDER BY position),
                array_agg(metric_id ORDER BY position), array_agg(session_id ORDER BY position),
                array_agg(metric_type ORDER BY position), array_agg(value ORDER BY position))
            FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
                 WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
            JOIN unnest(refused) AS wanted (position) USING (position)
        )
        SELECT json_agg(jsonb_set(fault::jsonb, '{position}', to_jsonb(refused[(fault ->> 'position')::integer])))
        FROM told, json_array_elements(told.outcomes) AS fault);
END
$function$;

REVOKE ALL ON FUNCTION
    store_doubtful_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[]),
    store_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[], boolean[]) FROM PUBLIC;
