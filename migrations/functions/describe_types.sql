-- How metric types are aggregated; `names` is a JSON array. Returns a JSON array with one object for each registered one,
-- positions from 1: {"position", "outcome": "registered", "aggregation"}, or NULL if none is registered.
CREATE OR REPLACE FUNCTION describe_types(names json) RETURNS json
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RETURN (SELECT json_agg(json_build_object('position', position, 'outcome', 'registered', 'aggregation', aggregation))
            FROM json_array_elements_text(names) WITH ORDINALITY AS sent (metric_type, position)
            JOIN metric_types USING (metric_type));
END
$function$;
