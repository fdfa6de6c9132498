-- What people and dashboards read: each view aggregates the rows of a rollup as the metric's type says. No value raises an
-- error, because that would be an error for everybody who reads the view: what is too large for a float8 is Infinity or
-- -Infinity, what is too small is 0.

-- The float8 nearest to a decimal number. The two bounds are where rounding gives 0 and infinity.
CREATE OR REPLACE FUNCTION nearest_float8(exact numeric) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE
        WHEN abs(exact) BETWEEN 2.4703282292062328e-324 AND 1.797693134862315807e308 THEN exact::float8
        WHEN abs(exact) < 1 THEN 0
        WHEN exact = 'NaN' THEN 'NaN'
        WHEN exact > 0 THEN 'Infinity'
        WHEN exact < 0 THEN '-Infinity'
    END
$function$;

-- A total by its count. exact_total is the total as a decimal number, or NULL.
CREATE OR REPLACE FUNCTION mean_value(total float8, metric_count bigint, exact_total numeric) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE
        WHEN abs(total) BETWEEN 1e-280 AND 1.7e308 OR total = 0 AND exact_total IS NULL THEN total / metric_count
        ELSE nearest_float8(coalesce(exact_total, total::text::numeric) / metric_count)
    END
$function$;

CREATE OR REPLACE FUNCTION value_difference(last float8, first float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE
        WHEN abs(last) < 8e307 AND abs(first) < 8e307 THEN last - first
        ELSE nearest_float8(last::text::numeric - first::text::numeric)
    END
$function$;

-- The value of a rollup's row by the type's aggregation.
CREATE OR REPLACE FUNCTION bucket_value(
    aggregation varchar, metric_count bigint, total float8, lowest float8, highest float8, true_count bigint, last_value float8,
    exact_total numeric
) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT CASE aggregation
        WHEN 'sum' THEN total
        WHEN 'mean' THEN mean_value(total, metric_count, exact_total)
        WHEN 'any' THEN CASE WHEN true_count > 0 THEN 1 ELSE 0 END
        WHEN 'min' THEN lowest
        WHEN 'max' THEN highest
        WHEN 'last' THEN last_value
    END
$function$;

-- One row for each user, session and metric type.
CREATE OR REPLACE VIEW session_type_summary AS
SELECT user_id, session_id, metric_type, kind, unit, aggregation,
       bucket_value(aggregation, metric_count, total, lowest, highest, true_count, last_value, exact_total) AS value,
       CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
       value_difference(last_value, first_value) AS shift,
       metric_count, lowest AS min_value, highest AS max_value, first_at, last_at
FROM session_rollup JOIN metric_types USING (metric_type);

-- One row for each session: `metrics` has the value of every type by name, and four types have columns of their own.
CREATE OR REPLACE VIEW session_summary AS
SELECT user_id, session_id,
       min(first_at) AS first_metric_at, max(last_at) AS last_metric_at, max(last_at) - min(first_at) AS duration,
       sum(metric_count)::bigint AS metric_count,
       max(value) FILTER (WHERE metric_type = 'talked_time') AS talked_time_s,
       bool_or(value = 1) FILTER (WHERE metric_type = 'microphone_used') AS microphone_used,
       bool_or(value = 1) FILTER (WHERE metric_type = 'speaker_used') AS speaker_used,
       max(value) FILTER (WHERE metric_type = 'voice_sentiment') AS mean_sentiment,
       max(shift) FILTER (WHERE metric_type = 'voice_sentiment') AS sentiment_shift,
       jsonb_object_agg(metric_type, value) AS metrics
FROM session_type_summary
GROUP BY user_id, session_id;

-- One row for each user, UTC day and metric type.
CREATE OR REPLACE VIEW user_day_summary AS
SELECT user_id, day, metric_type, kind, unit, aggregation,
       bucket_value(aggregation, metric_count, total, lowest, highest, true_count, last_value, exact_total) AS value,
       CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
       metric_count, lowest AS min_value, highest AS max_value, first_at, last_at
FROM user_day_rollup JOIN metric_types USING (metric_type);

-- One row for each metric type and UTC hour.
CREATE OR REPLACE VIEW type_hour_summary AS
SELECT metric_type, hour, kind, unit, aggregation,
       bucket_value(aggregation, metric_count, total, lowest, highest, true_count, last_value, exact_total) AS value,
       CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
       metric_count, lowest AS min_value, highest AS max_value, first_at, last_at
FROM type_hour_rollup JOIN metric_types USING (metric_type);
