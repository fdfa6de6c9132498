-- Summaries for people and dashboards: three rollups (what came together in a session, on a user's day, in a type's
-- hour), kept up by refresh_summaries(), and a view on each that aggregates as the metric's type says.

CREATE TABLE session_rollup (
    user_id      uuid        NOT NULL,
    session_id   uuid        NOT NULL,
    metric_type  varchar(64) NOT NULL,
    metric_count bigint      NOT NULL,
    total        float8      NOT NULL,
    lowest       float8      NOT NULL,
    highest      float8      NOT NULL,
    true_count   bigint      NOT NULL,
    first_at     timestamptz NOT NULL,
    first_value  float8      NOT NULL,
    last_at      timestamptz NOT NULL,
    last_value   float8      NOT NULL,
    CONSTRAINT session_rollup_pkey PRIMARY KEY (user_id, session_id, metric_type)
);

CREATE TABLE user_day_rollup (
    user_id      uuid        NOT NULL,
    day          date        NOT NULL,
    metric_type  varchar(64) NOT NULL,
    metric_count bigint      NOT NULL,
    total        float8      NOT NULL,
    lowest       float8      NOT NULL,
    highest      float8      NOT NULL,
    true_count   bigint      NOT NULL,
    first_at     timestamptz NOT NULL,
    first_value  float8      NOT NULL,
    last_at      timestamptz NOT NULL,
    last_value   float8      NOT NULL,
    CONSTRAINT user_day_rollup_pkey PRIMARY KEY (user_id, day, metric_type)
);
CREATE INDEX user_day_rollup_day_idx ON user_day_rollup (day);

CREATE TABLE type_hour_rollup (
    metric_type  varchar(64) NOT NULL,
    hour         timestamptz NOT NULL,
    metric_count bigint      NOT NULL,
    total        float8      NOT NULL,
    lowest       float8      NOT NULL,
    highest      float8      NOT NULL,
    true_count   bigint      NOT NULL,
    first_at     timestamptz NOT NULL,
    first_value  float8      NOT NULL,
    last_at      timestamptz NOT NULL,
    last_value   float8      NOT NULL,
    CONSTRAINT type_hour_rollup_pkey PRIMARY KEY (metric_type, hour)
);

-- Hours from which metrics were erased: the next refresh counts them again.
CREATE TABLE summary_repairs (
    metric_type varchar(64) NOT NULL,
    hour        timestamptz NOT NULL,
    CONSTRAINT summary_repairs_pkey PRIMARY KEY (metric_type, hour)
);

CREATE TABLE summary_state (
    only_row     boolean     NOT NULL DEFAULT true CONSTRAINT summary_state_pkey PRIMARY KEY
                             CONSTRAINT summary_state_one_row CHECK (only_row),
    seen_before  timestamptz NOT NULL DEFAULT '-infinity',
    seen_xid     xid8        NOT NULL DEFAULT '0',
    raw_since    timestamptz NOT NULL DEFAULT '-infinity',
    refreshed_at timestamptz
);
INSERT INTO summary_state DEFAULT VALUES;

COMMENT ON COLUMN summary_state.seen_before IS 'metrics received before it have all been summarised';
COMMENT ON COLUMN summary_state.seen_xid IS 'so have those of transactions before it';
COMMENT ON COLUMN summary_state.raw_since IS 'older metrics were dropped by retention: their summaries stay as they are';

-- Summarises what was received since the last time: finds the buckets that new metrics fell into, however late they are,
-- and counts each of those buckets again from its metrics. Doing it twice changes nothing. Returns what it did.
--
-- What is new? received_at is when a metric's transaction began, so one that was under way at the last refresh may have
-- committed since, with an earlier received_at than some that were seen. Two bounds hold it: seen_before lies before the
-- start of every transaction that was under way then (and ten minutes further back, should this role not be allowed to
-- see the start of other roles' transactions), which the BRIN index turns into a few blocks; and of those rows only the
-- ones whose transaction was not over then are new: its xid (xmin) is not before the snapshot's xmin.
--
-- A session's metrics can be anywhere in time, but those that were seen lie between first_at and last_at of its rollup,
-- and those that were not are new: so a range of the primary key has them all.
CREATE FUNCTION refresh_summaries() RETURNS json
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET jit = off
AS $function$
DECLARE
    aggregates CONSTANT text := $sql$
        count(*), sum(m.value ORDER BY m.timestamp, m.user_id, m.metric_id), min(m.value), max(m.value),
        count(*) FILTER (WHERE m.value <> 0),
        min(m.timestamp), (array_agg(m.value ORDER BY m.timestamp, m.user_id, m.metric_id))[1],
        max(m.timestamp), (array_agg(m.value ORDER BY m.timestamp, m.user_id, m.metric_id))[count(*)::int] $sql$;
    state       summary_state;
    next_before timestamptz;
    next_xid    xid8;
    earliest    timestamptz;
    latest      timestamptz;
    rows_new    bigint;
    sessions    bigint;
    days        bigint;
    hours       bigint := 0;
    part        bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('metrics-ingest summaries'));
    SELECT * INTO state FROM summary_state;
    -- Before the metrics are looked at: what commits from here on may be seen twice, but never missed.
    SELECT pg_snapshot_xmin(pg_current_snapshot()), least(now(), min(xact_start)) - interval '10 minutes'
    INTO next_xid, next_before FROM pg_stat_activity;
    IF next_xid::text::numeric - state.seen_xid::text::numeric > 1000000000 THEN
        state.seen_xid := NULL;  -- xmin has 32 bits, and so no order over such a distance
    END IF;

    CREATE TEMP TABLE fresh ON COMMIT DROP AS
        SELECT user_id, session_id, metric_type, timestamp FROM metrics
        WHERE received_at >= state.seen_before AND timestamp >= state.raw_since
          AND (state.seen_xid IS NULL OR state.seen_xid = '0' OR age(metrics.xmin) <= age(state.seen_xid::xid));
    GET DIAGNOSTICS rows_new = ROW_COUNT;

    CREATE TEMP TABLE touched_session ON COMMIT DROP AS
        SELECT user_id, session_id, metric_type,
               least(min(fresh.timestamp), min(known.first_at)) AS first_at,
               greatest(max(fresh.timestamp), max(known.last_at)) AS last_at
        FROM fresh LEFT JOIN session_rollup known USING (user_id, session_id, metric_type)
        GROUP BY user_id, session_id, metric_type
        HAVING COALESCE(min(known.first_at), 'infinity') >= state.raw_since;
    CREATE TEMP TABLE touched_day ON COMMIT DROP AS
        SELECT DISTINCT user_id, timestamp::date AS day, metric_type FROM fresh
        WHERE timestamp::date >= state.raw_since;
    CREATE TEMP TABLE touched_hour ON COMMIT DROP AS
        WITH repairs AS (DELETE FROM summary_repairs RETURNING metric_type, hour)
        SELECT metric_type, hour FROM repairs WHERE hour >= state.raw_since
        UNION SELECT metric_type, date_trunc('hour', timestamp) FROM fresh;
    ANALYZE touched_session, touched_day, touched_hour;

    -- The least and greatest time of all is said as well, for the planner to leave out the months that nothing fell into.
    SELECT min(first_at), max(last_at) INTO earliest, latest FROM touched_session;
    DELETE FROM session_rollup USING touched_session t
    WHERE (session_rollup.user_id, session_rollup.session_id, session_rollup.metric_type)
          = (t.user_id, t.session_id, t.metric_type);
    EXECUTE 'INSERT INTO session_rollup SELECT t.user_id, t.session_id, t.metric_type,' || aggregates ||
            'FROM touched_session t JOIN metrics m
                 ON m.user_id = t.user_id AND m.session_id = t.session_id AND m.metric_type = t.metric_type
                AND m.timestamp >= t.first_at AND m.timestamp <= t.last_at
             WHERE m.timestamp >= $1 AND m.timestamp <= $2
             GROUP BY t.user_id, t.session_id, t.metric_type' USING earliest, latest;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    SELECT min(day), max(day) + 1 INTO earliest, latest FROM touched_day;
    DELETE FROM user_day_rollup USING touched_day t
    WHERE (user_day_rollup.user_id, user_day_rollup.day, user_day_rollup.metric_type) = (t.user_id, t.day, t.metric_type);
    EXECUTE 'INSERT INTO user_day_rollup SELECT t.user_id, t.day, t.metric_type,' || aggregates ||
            'FROM touched_day t JOIN metrics m
                 ON m.user_id = t.user_id AND m.metric_type = t.metric_type
                AND m.timestamp >= t.day AND m.timestamp < t.day + 1
             WHERE m.timestamp >= $1 AND m.timestamp < $2
             GROUP BY t.user_id, t.day, t.metric_type' USING earliest, latest;
    GET DIAGNOSTICS days = ROW_COUNT;

    DELETE FROM type_hour_rollup USING touched_hour t
    WHERE (type_hour_rollup.metric_type, type_hour_rollup.hour) = (t.metric_type, t.hour);
    FOR earliest, latest IN
        SELECT min(hour), max(hour) + interval '1 hour' FROM touched_hour GROUP BY date_trunc('month', hour)
    LOOP
        EXECUTE 'INSERT INTO type_hour_rollup SELECT t.metric_type, t.hour,' || aggregates ||
                'FROM touched_hour t JOIN metrics m
                     ON m.metric_type = t.metric_type AND date_trunc(''hour'', m.timestamp) = t.hour
                 WHERE m.timestamp >= $1 AND m.timestamp < $2
                 GROUP BY t.metric_type, t.hour' USING earliest, latest;
        GET DIAGNOSTICS part = ROW_COUNT;
        hours := hours + part;
    END LOOP;

    UPDATE summary_state SET seen_before = next_before, seen_xid = next_xid, refreshed_at = now();
    RETURN json_build_object('metrics', rows_new, 'sessions', sessions, 'user_days', days, 'type_hours', hours);
END
$function$;

REVOKE ALL ON FUNCTION refresh_summaries() FROM PUBLIC;

-- What a bucket of a rollup amounts to, by the type's aggregation. A score has no sum: nothing here can give one.
CREATE FUNCTION summary_value(aggregation varchar, metric_count bigint, total float8, lowest float8, highest float8,
                              true_count bigint, last_value float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE aggregation
        WHEN 'sum' THEN total
        WHEN 'mean' THEN total / metric_count
        WHEN 'any' THEN CASE WHEN true_count > 0 THEN 1 ELSE 0 END
        WHEN 'min' THEN lowest
        WHEN 'max' THEN highest
        WHEN 'last' THEN last_value
    END
$function$;

-- A view calls it as whoever reads the view: who may read may call what is IMMUTABLE (grant_to_roles).
REVOKE ALL ON FUNCTION summary_value(varchar, bigint, float8, float8, float8, bigint, float8) FROM PUBLIC;

-- One row a session; the first four metric types have columns, and `metrics` has every type by name.
CREATE VIEW session_summary AS
SELECT user_id, session_id,
       min(first_at) AS first_metric_at,
       max(last_at) AS last_metric_at,
       max(last_at) - min(first_at) AS duration,
       sum(metric_count)::bigint AS metric_count,
       max(total) FILTER (WHERE metric_type = 'talked_time') AS talked_time_s,
       bool_or(true_count > 0) FILTER (WHERE metric_type = 'microphone_used') AS microphone_used,
       bool_or(true_count > 0) FILTER (WHERE metric_type = 'speaker_used') AS speaker_used,
       max(total / metric_count) FILTER (WHERE metric_type = 'voice_sentiment') AS mean_sentiment,
       max(last_value - first_value) FILTER (WHERE metric_type = 'voice_sentiment') AS sentiment_shift,
       jsonb_object_agg(metric_type, summary_value(aggregation, metric_count, total, lowest, highest, true_count, last_value))
           AS metrics
FROM session_rollup JOIN metric_types USING (metric_type)
GROUP BY user_id, session_id;

-- One row a user, UTC day and metric type.
CREATE VIEW user_day_summary AS
SELECT user_id, day, metric_type, kind, unit, aggregation,
       summary_value(aggregation, metric_count, total, lowest, highest, true_count, last_value) AS value,
       CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
       metric_count, lowest AS min_value, highest AS max_value, first_at, last_at
FROM user_day_rollup JOIN metric_types USING (metric_type);

-- One row a metric type and UTC hour.
CREATE VIEW type_hour_summary AS
SELECT metric_type, hour, kind, unit, aggregation,
       summary_value(aggregation, metric_count, total, lowest, highest, true_count, last_value) AS value,
       CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
       metric_count, lowest AS min_value, highest AS max_value, first_at, last_at
FROM type_hour_rollup JOIN metric_types USING (metric_type);
