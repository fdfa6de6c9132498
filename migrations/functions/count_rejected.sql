-- Adds to the counts of today's rejected metrics, a JSON array of {"route", "key_name", "code", "rejected"}. Returns NULL.
-- In key order, because two calls in different orders would deadlock.
CREATE OR REPLACE FUNCTION count_rejected(batch json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '1s' SET timezone = 'UTC'
AS $function$
BEGIN
    INSERT INTO rejected_counts AS stored (day, route, key_name, code, rejected)
    SELECT current_date, route, coalesce(key_name, ''), code, sum(rejected)
    FROM json_to_recordset(batch) AS sent (route text, key_name text, code text, rejected bigint)
    GROUP BY route, coalesce(key_name, ''), code ORDER BY route, coalesce(key_name, ''), code
    ON CONFLICT (day, route, key_name, code) DO UPDATE SET rejected = stored.rejected + excluded.rejected;
    RETURN NULL;
END
$function$;
