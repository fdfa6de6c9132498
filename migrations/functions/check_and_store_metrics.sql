-- The slow path of store_metrics (see there for arguments and result): looks up each metric's user, type and identity,
-- stores the metrics that are valid and new, and reports the others by their `positions`.
-- enable_seqscan: a plan that is made while the tables are small must still do when they are large.
-- extra_float_digits: values pass through JSON; with 0, which a database may have, different ones compare as equal.
CREATE OR REPLACE FUNCTION check_and_store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    positions bigint[]
) RETURNS json LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off SET jit = off SET extra_float_digits = 1 AS $function$
DECLARE
    refused    json;  -- metrics with an unknown user, an invalid type or an invalid value
    inserted   json;  -- keys of the metrics that were inserted
    not_stored json;  -- valid metrics that were not inserted: their keys exist
    existing   json;  -- the stored metrics with those keys
    erased     uuid[] := ARRAY(SELECT user_id FROM user_erasures);
BEGIN
    -- Rows are inserted in key order, because two overlapping batches in different orders would deadlock. So would two
    -- transactions that lock sessions before metrics and after them, so sessions come first, in a statement of their own.
    INSERT INTO sessions AS existing (user_id, session_id, start_time)
    SELECT sent.user_id, sent.session_id, min(sent.timestamp)
    FROM unnest(user_ids, timestamps, session_ids, types, numbers) AS sent (user_id, timestamp, session_id, metric_type, value)
    JOIN metric_types AS type ON type.metric_type = sent.metric_type
    WHERE metric_fault(kind, min_value, max_value, retired_at, sent.value) IS NULL
      AND sent.user_id IN (SELECT user_id FROM users WHERE user_id = ANY (user_ids))
    GROUP BY sent.user_id, sent.session_id ORDER BY sent.user_id, sent.session_id
    ON CONFLICT (user_id, session_id) DO UPDATE SET start_time = excluded.start_time
        WHERE excluded.start_time < existing.start_time;

    WITH known_user AS MATERIALIZED (
        SELECT user_id FROM users WHERE user_id = ANY (user_ids) AND user_id <> ALL (erased)
    ),
    item AS MATERIALIZED (
        SELECT sent.*, known_user.user_id IS NOT NULL AS user_known,
               metric_fault(kind, min_value, max_value, retired_at, sent.value) AS type_fault,
               type.retired_at IS NOT NULL AS retired, type.kind = 'flag' AS flag, type.min_value, type.max_value
        FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers, positions)
             AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
        LEFT JOIN known_user ON known_user.user_id = sent.user_id
        LEFT JOIN metric_types AS type ON type.metric_type = sent.metric_type
    ),
    stored AS (
        INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
        SELECT user_id, timestamp, metric_id, session_id, metric_type, value
        FROM item WHERE user_known AND type_fault IS NULL ORDER BY user_id, timestamp, metric_id, position
        ON CONFLICT DO NOTHING
        RETURNING user_id, timestamp, metric_id
    )
    SELECT (SELECT json_agg(item) FROM item WHERE NOT user_known OR type_fault IS NOT NULL),
           (SELECT json_agg(stored) FROM stored) INTO refused, inserted;

    SELECT json_agg(sent) INTO not_stored
    FROM (SELECT *, row_number() OVER (PARTITION BY user_id, timestamp, metric_id ORDER BY position) > 1 AS repeat
          FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers, positions)
               AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
          WHERE position NOT IN (SELECT position FROM json_to_recordset(refused) AS item (position bigint))) AS sent
    LEFT JOIN json_to_recordset(inserted) AS stored (user_id uuid, timestamp timestamptz, metric_id uuid)
        USING (user_id, timestamp, metric_id)
    WHERE sent.repeat OR stored.user_id IS NULL;
    existing := existing_metrics(not_stored);

    RETURN (SELECT json_agg(outcome) FROM (
        SELECT json_build_object('position', position, 'outcome', 'unknown_user')
        FROM json_to_recordset(refused) AS item (position bigint, user_known boolean) WHERE NOT user_known
        UNION ALL
        SELECT json_build_object('position', position, 'outcome', type_fault, 'retired', retired, 'flag', flag,
                                 'min', min_value, 'max', max_value,
                                 'alike', CASE WHEN type_fault = 'unknown_metric_type' THEN types_like(metric_type) END)
        FROM json_to_recordset(refused) AS item (position bigint, metric_type text, type_fault text, retired boolean,
                                                 flag boolean, min_value float8, max_value float8)
        WHERE type_fault IS NOT NULL
        UNION ALL
        SELECT json_build_object('position', sent.position, 'repeat', sent.repeat, 'outcome', CASE
            WHEN metric.value IS NULL OR (metric.session_id, metric.metric_type, metric.value)
                                       = (sent.session_id, sent.metric_type, sent.value) THEN 'duplicate'
            ELSE 'metric_conflict' END)
        FROM json_to_recordset(not_stored) AS sent (user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid,
                                                    metric_type text, value float8, position bigint, repeat boolean)
        LEFT JOIN (SELECT DISTINCT metric.* FROM json_to_recordset(existing) AS metric (
            user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid, metric_type text, value float8))
            AS metric USING (user_id, timestamp, metric_id)
    ) AS outcomes (outcome));
END
$function$;

-- Names of accepted metric types that a sender may have meant: those with the same beginning, and longer and shorter ones.
CREATE OR REPLACE FUNCTION types_like(sent text) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $function$
    SELECT json_agg(metric_type) FROM (
        SELECT metric_type FROM metric_types
        WHERE retired_at IS NULL
          AND (left(metric_type, 2) = left(sent, 2) OR strpos(metric_type, sent) > 0 OR strpos(sent, metric_type) > 0)
        ORDER BY metric_type LIMIT 20) AS types
$function$;

-- The stored metrics that have the keys of the given ones, both as JSON arrays. VOLATILE, so that its statement has a new
-- snapshot, which sees what concurrent transactions have committed meanwhile. functions/citus has another version.
CREATE OR REPLACE FUNCTION existing_metrics(wanted json) RETURNS json
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RETURN (SELECT json_agg(metric)
            FROM json_to_recordset(wanted) AS sent (user_id uuid, timestamp timestamptz, metric_id uuid),
                 LATERAL (SELECT * FROM metrics
                          WHERE metrics.user_id = sent.user_id AND metrics.timestamp = sent.timestamp
                            AND metrics.metric_id = sent.metric_id LIMIT 1) AS metric);
END
$function$;
