-- Whether the metric_id of a rejected metric was computed from the sender's Idempotency-Key, so that the sender has it: what
-- the sender has no identity of, a replay could store twice.

ALTER TABLE rejected_metrics ADD COLUMN keyed boolean NOT NULL DEFAULT false;
