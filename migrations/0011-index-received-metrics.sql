-- Finds what was received lately, and what was measured in an hour, without reading whole months. Rows are appended in
-- the order of arrival and arrive roughly in the order of measurement, so block ranges do: such an index has a few
-- kilobytes, and adds nothing measurable to an insert, where a B-tree on received_at adds a twentieth.
-- minmax_multi keeps a range useful when a few late rows stand in it.

CREATE INDEX metrics_received_brin ON metrics
USING brin (received_at, timestamp timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on);
