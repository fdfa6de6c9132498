-- The error code for a value of a metric type, or NULL when it is valid: the one place with the rule for ranges, flags and
-- retired types. `type` is a row of metric_types, all NULL for a type that is not registered.
-- PostgreSQL inlines this function into the queries that use it (no SET, no SECURITY DEFINER, one expression).
CREATE OR REPLACE FUNCTION metric_fault(type metric_types, value float8) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE
        WHEN type.metric_type IS NULL OR type.retired_at IS NOT NULL THEN 'unknown_metric_type'
        WHEN value BETWEEN coalesce(type.min_value, '-Infinity') AND coalesce(type.max_value, 'Infinity')
             AND (type.kind <> 'flag' OR value IN (0, 1)) THEN NULL
        ELSE 'value_out_of_range'
    END
$function$;
