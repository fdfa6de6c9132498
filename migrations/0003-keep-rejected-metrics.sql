-- The metrics that ingest and ingest_batch refused, to be looked at, and to be stored once the cause is fixed.
-- payload is bytea because a refused body may be no JSON, no UTF-8, or contain a NUL, which text cannot hold.

CREATE TABLE rejected_metrics (
    rejected_id   uuid         NOT NULL DEFAULT gen_random_uuid(),
    received_at   timestamptz  NOT NULL DEFAULT now(),
    route         varchar(64)  NOT NULL,
    key_name      varchar(64),
    codes         varchar(64)[] NOT NULL,
    detail        text         NOT NULL DEFAULT '',
    metric_id     uuid,  -- the one in the reply, for a payload without one
    payload       bytea        NOT NULL,
    payload_bytes integer      NOT NULL,  -- of what was sent: more than payload has, when that was cut
    named_ids     uuid[]       NOT NULL DEFAULT '{}',  -- every UUID in payload and detail, however it is spelled
    CONSTRAINT rejected_metrics_pkey PRIMARY KEY (received_at, rejected_id),
    CONSTRAINT rejected_metrics_payload_capped CHECK (octet_length(payload) <= 8192)
) PARTITION BY RANGE (received_at);

CREATE TABLE rejected_metrics_default PARTITION OF rejected_metrics DEFAULT;
