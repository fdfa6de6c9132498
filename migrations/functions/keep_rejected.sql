-- Stores a batch of rejected metrics, a JSON array of
-- {"route", "key_name", "codes", "detail", "metric_id", "keyed", "payload" (base64), "payload_bytes", "named_ids"}.
-- Returns NULL. What names a user who was erased, or whose erasure is under way, is not stored.
-- lock_timeout: maintenance that locks the table must not block a connection that stores metrics.
CREATE OR REPLACE FUNCTION keep_rejected(batch json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '100ms' AS $function$
BEGIN
    INSERT INTO rejected_metrics (route, key_name, codes, detail, metric_id, keyed, payload, payload_bytes, named_ids)
    SELECT route, key_name, codes, detail, metric_id, coalesce(keyed, false), decode(payload, 'base64'), payload_bytes,
           coalesce(named_ids, '{}')
    FROM json_to_recordset(batch) AS sent (route text, key_name text, codes text[], detail text, metric_id uuid,
                                           keyed boolean, payload text, payload_bytes integer, named_ids uuid[])
    WHERE NOT EXISTS (SELECT FROM unnest(named_ids) AS named (id)
                      JOIN forgotten_users ON user_digest = sha256(uuid_send(named.id)));
    RETURN NULL;
END
$function$;
