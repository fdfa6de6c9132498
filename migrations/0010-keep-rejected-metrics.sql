-- What ingest and ingest_batch refused, so that it can be looked at and stored once the cause is mended.
-- The payload is bytea: what was refused may be no JSON, no UTF-8, or hold a NUL, which text cannot.

CREATE TABLE rejected_metrics (
    rejected_id   uuid         NOT NULL DEFAULT gen_random_uuid(),
    received_at   timestamptz  NOT NULL DEFAULT now(),
    route         varchar(64)  NOT NULL,
    key_name      varchar(64),
    codes         varchar(64)[] NOT NULL,
    detail        text         NOT NULL DEFAULT '',
    metric_id     uuid,
    payload       bytea        NOT NULL,
    payload_bytes integer      NOT NULL,
    CONSTRAINT rejected_metrics_pkey PRIMARY KEY (received_at, rejected_id),
    CONSTRAINT rejected_metrics_payload_capped CHECK (octet_length(payload) <= 8192)
) PARTITION BY RANGE (received_at);

COMMENT ON COLUMN rejected_metrics.metric_id IS 'the identity that the answer told, for a payload that names none';
COMMENT ON COLUMN rejected_metrics.payload_bytes IS 'what was sent; more than the payload has when it was cut';

CREATE TABLE rejected_metrics_default PARTITION OF rejected_metrics DEFAULT;

-- Keeps a batch of refused metrics: [{"route", "key_name", "codes", "detail", "metric_id", "payload": base64, "payload_bytes"}].
CREATE FUNCTION keep_rejected(batch json) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '100ms'  -- what is refused must never hold up, behind maintenance, a connection that stores metrics
AS $function$
BEGIN
    INSERT INTO rejected_metrics (route, key_name, codes, detail, metric_id, payload, payload_bytes)
    SELECT route, key_name, codes, detail, metric_id, decode(payload, 'base64'), payload_bytes
    FROM json_to_recordset(batch) AS sent (route text, key_name text, codes text[], detail text, metric_id uuid,
                                           payload text, payload_bytes integer);
    RETURN NULL;
END
$function$;

REVOKE ALL ON FUNCTION keep_rejected(json) FROM PUBLIC;
