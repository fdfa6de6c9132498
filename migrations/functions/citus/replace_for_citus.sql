-- Functions as Citus needs them. `metrics-ingest migrate` applies the files of this folder after the others, where the extension is.

-- As the plain version, without its locks: those would be on the tables of this node only, not on their shards. With
-- internal_error, which is what Citus makes of a constraint that another node reports.
CREATE OR REPLACE FUNCTION store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    IF EXISTS (SELECT FROM user_erasures WHERE user_id = ANY (user_ids)) THEN  -- the slow path refuses their metrics
        RETURN check_and_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers,
                                       ARRAY(SELECT generate_series(1, cardinality(user_ids))));
    END IF;
    BEGIN
        RETURN insert_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers, new_sessions);
    EXCEPTION WHEN unique_violation OR foreign_key_violation OR internal_error THEN
        RETURN check_and_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers,
                                       ARRAY(SELECT generate_series(1, cardinality(user_ids))));
    END;
END
$function$;

-- As the plain version. The types are looked up first, because an INSERT that reads a table as well costs Citus 0.6 ms to plan,
-- and one of arrays only 0.2 ms.
CREATE OR REPLACE FUNCTION insert_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql AS $function$
DECLARE
    refused bigint[] := ARRAY(  -- positions
        SELECT position
        FROM unnest(types, numbers) WITH ORDINALITY AS sent (metric_type, value, position)
        LEFT JOIN metric_types AS type USING (metric_type)
        WHERE metric_fault(kind, min_value, max_value, retired_at, value) IS NOT NULL);
BEGIN
    IF cardinality(new_sessions) > 0 THEN
        INSERT INTO sessions AS existing (user_id, session_id, start_time)
        SELECT sent.user_id, sent.session_id, min(sent.timestamp)
        FROM unnest(user_ids, timestamps, session_ids, new_sessions)
             WITH ORDINALITY AS sent (user_id, timestamp, session_id, is_new, position)
        WHERE sent.is_new AND sent.position <> ALL (refused)
        GROUP BY sent.user_id, sent.session_id ORDER BY sent.user_id, sent.session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET start_time = excluded.start_time
            WHERE excluded.start_time < existing.start_time;
    END IF;
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
    SELECT sent.user_id, sent.timestamp, sent.metric_id, sent.session_id, sent.metric_type, sent.value
    FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
         WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
    WHERE sent.position <> ALL (refused)
    ORDER BY sent.user_id, sent.timestamp, sent.metric_id;
    IF cardinality(refused) = 0 THEN RETURN NULL; END IF;
    RETURN (  -- the slow path finds out why
        SELECT check_and_store_metrics(array_agg(user_id), array_agg(timestamp), array_agg(metric_id), array_agg(session_id),
                                       array_agg(metric_type), array_agg(value), array_agg(position))
        FROM unnest(user_ids, timestamps, metric_ids, session_ids, types, numbers)
             WITH ORDINALITY AS sent (user_id, timestamp, metric_id, session_id, metric_type, value, position)
        WHERE position = ANY (refused));
END
$function$;

-- Citus has no LATERAL across shards, and would fetch the whole table for a join that does not filter by user_id.
CREATE OR REPLACE FUNCTION existing_metrics(wanted json) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    user_ids uuid[] := ARRAY(SELECT user_id FROM json_to_recordset(wanted) AS sent (user_id uuid));
    existing json;
BEGIN
    SELECT json_agg(metric) INTO existing
    FROM (SELECT metrics.* FROM metrics
          JOIN (SELECT DISTINCT sent.* FROM json_to_recordset(wanted)
                    AS sent (user_id uuid, timestamp timestamptz, metric_id uuid)) AS sent
              USING (user_id, timestamp, metric_id)
          WHERE metrics.user_id = ANY (user_ids)) AS metric;
    RETURN existing;
END
$function$;
