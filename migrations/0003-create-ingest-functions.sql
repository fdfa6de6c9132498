-- The set-based half of the write path (docs/architecture.md). Both functions take a JSON array and return a JSON array;
-- positions in it count from 1.

-- Stores a batch of complete metrics (user_id, timestamp, metric_id, session_id, metric_type, value, all present).
-- Returns NULL when every one was stored, else one object for each that was not:
--   {"position", "outcome": "unknown_user" | "unknown_metric_type" | "value_out_of_range" | "duplicate" | "metric_conflict"}
-- with retired, flag, min and max where a detail needs them, and "repeat": true when an earlier metric of this very
-- batch has the same identity. A metric may have several faults, and so several objects.
CREATE FUNCTION ingest_metrics(batch json) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET jit = off
AS $function$
DECLARE
    complete   boolean;
    rejected   json;
    not_stored json;
BEGIN
    -- Everything is inserted in key order: two overlapping batches in different orders would deadlock.
    WITH item AS MATERIALIZED (
        SELECT sent.*,
               known_user.user_id IS NOT NULL AS user_known,
               kind.metric_type IS NOT NULL AND kind.retired_at IS NULL AS type_known,
               kind.retired_at IS NOT NULL AS type_retired,
               kind.kind = 'flag' AS flag, kind.min_value, kind.max_value,
               COALESCE(sent.value < kind.min_value, false) OR COALESCE(sent.value > kind.max_value, false)
                   OR COALESCE(kind.kind = 'flag' AND sent.value NOT IN (0, 1), false) AS out_of_range
        FROM ROWS FROM (json_to_recordset(batch) AS (user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid,
                                                     metric_type varchar, value float8))
             WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
        LEFT JOIN users known_user ON known_user.user_id = sent.user_id
        LEFT JOIN metric_types kind ON kind.metric_type = sent.metric_type
    ),
    accepted AS NOT MATERIALIZED (
        SELECT * FROM item WHERE user_known AND type_known AND NOT out_of_range
    ),
    new_session AS (
        INSERT INTO sessions (user_id, session_id, start_time)
        SELECT user_id, session_id, min(timestamp) FROM accepted GROUP BY user_id, session_id ORDER BY user_id, session_id
        ON CONFLICT DO NOTHING
    ),
    stored AS (
        INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
        SELECT user_id, timestamp, metric_id, session_id, metric_type, value
        FROM accepted ORDER BY user_id, timestamp, metric_id, position
        ON CONFLICT DO NOTHING
        RETURNING user_id, timestamp, metric_id
    ),
    verdict AS (
        SELECT (SELECT count(*) FROM item) = (SELECT count(*) FROM stored) AS complete
    )
    SELECT verdict.complete,
           CASE WHEN NOT verdict.complete THEN (
               SELECT json_agg(fault) FROM (
                   SELECT json_build_object('position', position, 'outcome', 'unknown_user')
                   FROM item WHERE NOT user_known
                   UNION ALL
                   SELECT json_build_object('position', position, 'outcome', 'unknown_metric_type', 'retired', type_retired)
                   FROM item WHERE NOT type_known
                   UNION ALL
                   SELECT json_build_object('position', position, 'outcome', 'value_out_of_range',
                                            'flag', flag, 'min', min_value, 'max', max_value)
                   FROM item WHERE type_known AND out_of_range
               ) AS faults (fault))
           END,
           CASE WHEN NOT verdict.complete THEN (
               SELECT json_agg(json_build_object('position', copy.position, 'repeat', copy.number > 1))
               FROM (SELECT user_id, timestamp, metric_id, position,
                            row_number() OVER (PARTITION BY user_id, timestamp, metric_id ORDER BY position) AS number
                     FROM accepted) AS copy
               LEFT JOIN stored USING (user_id, timestamp, metric_id)
               WHERE copy.number > 1 OR stored.user_id IS NULL)
           END
    INTO complete, rejected, not_stored
    FROM verdict;

    IF complete THEN
        RETURN NULL;
    END IF;

    -- A statement of its own, and so with a snapshot that sees what a concurrent transaction has committed meanwhile.
    RETURN (
        SELECT json_agg(outcome) FROM (
            SELECT json_array_elements(rejected)
            UNION ALL
            SELECT json_build_object('position', position, 'repeat', repeat, 'outcome', CASE
                       WHEN (existing.session_id, existing.metric_type, existing.value)
                            IS DISTINCT FROM (sent.session_id, sent.metric_type, sent.value)
                            AND existing.user_id IS NOT NULL THEN 'metric_conflict'
                       ELSE 'duplicate' END)
            FROM json_to_recordset(not_stored) AS left_over (position bigint, repeat boolean)
            JOIN ROWS FROM (json_to_recordset(batch) AS (user_id uuid, timestamp timestamptz, metric_id uuid,
                                                         session_id uuid, metric_type varchar, value float8))
                 WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
                 USING (position)
            LEFT JOIN LATERAL (
                SELECT * FROM metrics
                WHERE metrics.user_id = sent.user_id AND metrics.timestamp = sent.timestamp
                  AND metrics.metric_id = sent.metric_id
                LIMIT 1) AS existing ON true
        ) AS outcomes (outcome));
END
$function$;

-- Registers users (user_id, name, email), or updates the name and email of those that exist.
-- Returns one object for each, in order: {"position", "created_at", "created": true when it was new}.
CREATE FUNCTION register_users(batch json) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $function$
DECLARE
    sent        record;
    is_new      boolean;
    created     timestamptz;
    outcomes    json[] := '{}';
BEGIN
    -- One at a time: a batch may name a user twice, which a single INSERT ... DO UPDATE refuses. In key order, against deadlocks.
    FOR sent IN
        SELECT * FROM ROWS FROM (json_to_recordset(batch) AS (user_id uuid, name varchar, email varchar))
                      WITH ORDINALITY AS user_sent (user_id, name, email, position)
        ORDER BY user_id, position
    LOOP
        INSERT INTO users AS existing (user_id, name, email) VALUES (sent.user_id, sent.name, sent.email)
        ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, email = excluded.email
        RETURNING existing.created_at, existing.xmax = 0 INTO created, is_new;
        outcomes := outcomes || json_build_object('position', sent.position, 'created_at', created, 'created', is_new);
    END LOOP;
    RETURN (SELECT json_agg(outcome ORDER BY (outcome ->> 'position')::bigint) FROM unnest(outcomes) AS outcome);
END
$function$;

REVOKE ALL ON FUNCTION ingest_metrics(json), register_users(json) FROM PUBLIC;
