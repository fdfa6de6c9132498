-- Stores a batch of refused metrics, a JSON array of
-- {"route", "key_name", "codes", "detail", "metric_id", "keyed", "payload" (base64), "payload_bytes"}. Returns NULL.
-- lock_timeout: maintenance that locks the table must not block a connection that stores metrics.
CREATE OR REPLACE FUNCTION keep_rejected(batch json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '100ms' AS $function$
BEGIN
    INSERT INTO rejected_metrics (route, key_name, codes, detail, metric_id, keyed, payload, payload_bytes)
    SELECT route, key_name, codes, detail, metric_id, coalesce(keyed, false), decode(payload, 'base64'), payload_bytes
    FROM json_to_recordset(batch) AS sent (route text, key_name text, codes text[], detail text, metric_id uuid,
                                           keyed boolean, payload text, payload_bytes integer);
    RETURN NULL;
END
$function$;
