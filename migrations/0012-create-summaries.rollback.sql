DROP VIEW session_summary, user_day_summary, type_hour_summary;
DROP FUNCTION summary_value(varchar, bigint, float8, float8, float8, bigint, float8);
DROP FUNCTION refresh_summaries();
DROP TABLE session_rollup, user_day_rollup, type_hour_rollup, summary_repairs, summary_state;
