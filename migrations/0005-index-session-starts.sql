-- Finds the sessions that began in a time range without reading all of them. Sessions are stored roughly in the order in
-- which they begin, so block ranges do; such an index adds nothing measurable to an insert.

CREATE INDEX sessions_start_time_brin ON sessions USING brin (start_time timestamptz_minmax_multi_ops)
WITH (pages_per_range = 32, autosummarize = on);
