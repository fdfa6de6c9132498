-- The error code for a value of a metric type, or NULL when it is valid: the one place with the rule for ranges, flags and
-- retired types. The others are columns of metric_types, all NULL for a type that is not registered: not its row, because
-- on Citus a row is of another type on each node.
-- PostgreSQL inlines this function into the queries that use it (no SET, no SECURITY DEFINER, one expression).
CREATE OR REPLACE FUNCTION metric_fault(kind text, min_value float8, max_value float8, retired_at timestamptz, value float8)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE
        WHEN kind IS NULL OR retired_at IS NOT NULL THEN 'unknown_metric_type'
        WHEN value BETWEEN coalesce(min_value, '-Infinity') AND coalesce(max_value, 'Infinity')
             AND (kind <> 'flag' OR value IN (0, 1)) THEN NULL
        ELSE 'value_out_of_range'
    END
$function$;

DROP FUNCTION IF EXISTS metric_fault(metric_types, float8);  -- as it was before
