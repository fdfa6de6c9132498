DROP INDEX sessions_start_time_brin;
