-- The set-based half of the write path (docs/architecture.md). Positions count from 1.

-- Stores a batch of complete metrics, given by columns: arrays of one length, without NULLs.
-- Returns NULL when every one was stored, else a JSON array with one object for each that was not:
--   {"position", "outcome": "unknown_user" | "unknown_metric_type" | "value_out_of_range" | "duplicate" | "metric_conflict"}
-- with retired, flag, min and max where a detail needs them, and "repeat": true when an earlier metric of this very
-- batch has the same identity. A metric may have several faults, and so several objects.
-- One plan for every size of batch, and by indexes: what was planned while the tables were small must do when they are not.
CREATE FUNCTION ingest_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[]
) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $function$
DECLARE
    sent_count CONSTANT integer := cardinality(user_ids);
    stored_count integer;
    refused      json;
    inserted     json;
BEGIN
    -- Everything is inserted in key order: two overlapping batches in different orders would deadlock.
    WITH item AS MATERIALIZED (
        SELECT sent.*,
               known_user.user_id IS NOT NULL AS user_known,
               kind.metric_type IS NOT NULL AND kind.retired_at IS NULL AS type_known,
               kind.retired_at, kind.kind, kind.min_value, kind.max_value,
               (sent.value < kind.min_value OR sent.value > kind.max_value
                   OR kind.kind = 'flag' AND sent.value NOT IN (0, 1)) IS TRUE AS out_of_range
        FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
             WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
        LEFT JOIN users AS known_user ON known_user.user_id = sent.user_id
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
    SELECT counted.total,
           CASE WHEN counted.total < sent_count THEN
               (SELECT json_agg(item) FROM item WHERE NOT (user_known AND type_known AND NOT out_of_range)) END,
           CASE WHEN counted.total < sent_count THEN (SELECT json_agg(stored) FROM stored) END
    INTO stored_count, refused, inserted
    FROM (SELECT count(*) AS total FROM stored) AS counted;

    IF stored_count = sent_count THEN
        RETURN NULL;
    END IF;

    -- A statement of its own, and so with a snapshot that sees what a concurrent transaction has committed meanwhile.
    RETURN (
        WITH fault AS (
            SELECT * FROM json_to_recordset(refused) AS item (
                position bigint, user_known boolean, type_known boolean, out_of_range boolean,
                retired_at timestamptz, kind text, min_value float8, max_value float8)
        ),
        sent AS (
            SELECT *, row_number() OVER (PARTITION BY user_id, timestamp, metric_id ORDER BY position) > 1 AS repeat
            FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
                 WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
            WHERE position NOT IN (SELECT position FROM fault)
        ),
        first_stored AS (
            SELECT * FROM json_to_recordset(inserted) AS stored (user_id uuid, timestamp timestamptz, metric_id uuid)
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
                WHEN existing.value IS NULL
                  OR (existing.session_id, existing.metric_type, existing.value)
                   = (sent.session_id, sent.metric_type, sent.value) THEN 'duplicate'
                ELSE 'metric_conflict' END)
            FROM sent
            LEFT JOIN first_stored USING (user_id, timestamp, metric_id)
            LEFT JOIN LATERAL (
                SELECT metrics.session_id, metrics.metric_type, metrics.value FROM metrics
                WHERE metrics.user_id = sent.user_id AND metrics.timestamp = sent.timestamp
                  AND metrics.metric_id = sent.metric_id
                LIMIT 1) AS existing ON true
            WHERE sent.repeat OR first_stored.user_id IS NULL
        ) AS outcomes (outcome));
END
$function$;

-- Registers users, a JSON array of (user_id, name, email), or updates the name and email of those that exist.
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

REVOKE ALL ON FUNCTION ingest_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[]), register_users(json) FROM PUBLIC;
