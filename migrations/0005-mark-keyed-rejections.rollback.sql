ALTER TABLE rejected_metrics DROP COLUMN keyed;
