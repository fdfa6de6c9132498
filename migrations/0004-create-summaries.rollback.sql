DROP TABLE session_rollup, user_day_rollup, type_hour_rollup, summary_repairs, summary_state;
