-- Two functions as Citus needs them. `metrics-ingest migrate` applies this file after the others, where the extension is.

-- The same as the plain one, but for internal_error: that is what Citus makes of a constraint that a worker reports.
CREATE OR REPLACE FUNCTION store_metrics(
    user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[], numbers float8[],
    new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    being_erased uuid[];
BEGIN
    PERFORM FROM users WHERE false;
    DELETE FROM sessions WHERE false;
    IF EXISTS (SELECT FROM user_erasures) THEN
        being_erased := ARRAY(SELECT user_id FROM user_erasures);
        IF being_erased && user_ids THEN  -- the slow path refuses their metrics
            RETURN check_and_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers,
                                           ARRAY(SELECT generate_series(1, cardinality(user_ids))));
        END IF;
    END IF;
    BEGIN
        RETURN insert_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers, new_sessions);
    EXCEPTION WHEN unique_violation OR foreign_key_violation OR internal_error THEN
        RETURN check_and_store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers,
                                       ARRAY(SELECT generate_series(1, cardinality(user_ids))));
    END;
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
