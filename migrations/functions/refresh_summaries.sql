-- Brings the rollups up to date: finds the buckets (a session's type, a user's day, a type's hour) of newly received
-- metrics, however late, and recomputes each from its metrics. Running it twice changes nothing. Returns counts.
--
-- Which metrics are new? received_at is the start of a metric's transaction, so a transaction that was open at the last
-- refresh may have committed since, with an earlier received_at than metrics that were seen. Two bounds cover this.
-- seen_before is the start of the oldest transaction open then, less ten minutes (this role may not be allowed to see
-- when other roles' transactions began); the BRIN index finds the rows since in a few blocks. New are those whose
-- transaction had not ended: their xmin is not before that snapshot's xmin, seen_xid.
--
-- A session's metrics that were seen before lie between first_at and last_at of its rollup row, and the others are new: so
-- one range of the primary key holds all of them.
CREATE OR REPLACE FUNCTION refresh_summaries() RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET jit = off AS $function$
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
    metrics_new bigint;
    sessions    bigint;
    days        bigint;
    hours       bigint := 0;
    hours_added bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('metrics-ingest summaries'));
    SELECT * INTO state FROM summary_state;
    -- Read before the metrics: what commits from here on may be seen by two refreshes, but is never missed.
    SELECT first_unseen_xid(), least(now(), min(xact_start)) - interval '10 minutes'
    INTO next_xid, next_before FROM pg_stat_activity;
    IF next_xid::text::numeric - state.seen_xid::text::numeric > 1000000000 THEN
        state.seen_xid := NULL;  -- xmin has 32 bits, and ids so far apart cannot be compared
    END IF;

    CREATE TEMP TABLE new_metric ON COMMIT DROP AS
        SELECT user_id, session_id, metric_type, timestamp FROM metrics
        WHERE received_at >= state.seen_before AND timestamp >= state.raw_since
          AND (state.seen_xid IS NULL OR state.seen_xid = '0' OR age(metrics.xmin) <= age(state.seen_xid::xid));
    GET DIAGNOSTICS metrics_new = ROW_COUNT;

    CREATE TEMP TABLE changed_session ON COMMIT DROP AS
        SELECT user_id, session_id, metric_type,
               least(min(timestamp), min(known.first_at)) AS first_at, greatest(max(timestamp), max(known.last_at)) AS last_at
        FROM new_metric LEFT JOIN session_rollup known USING (user_id, session_id, metric_type)
        GROUP BY user_id, session_id, metric_type
        HAVING coalesce(min(known.first_at), 'infinity') >= state.raw_since;
    CREATE TEMP TABLE changed_day ON COMMIT DROP AS
        SELECT DISTINCT user_id, timestamp::date AS day, metric_type FROM new_metric WHERE timestamp::date >= state.raw_since;
    CREATE TEMP TABLE changed_hour ON COMMIT DROP AS
        WITH repairs AS (DELETE FROM summary_repairs RETURNING metric_type, hour)
        SELECT metric_type, hour FROM repairs WHERE hour >= state.raw_since
        UNION SELECT metric_type, date_trunc('hour', timestamp) FROM new_metric;
    ANALYZE changed_session, changed_day, changed_hour;

    -- Each query also has its earliest and latest time as parameters, so that the planner skips other months' partitions.
    SELECT min(first_at), max(last_at) INTO earliest, latest FROM changed_session;
    DELETE FROM session_rollup r USING changed_session c
    WHERE (r.user_id, r.session_id, r.metric_type) = (c.user_id, c.session_id, c.metric_type);
    EXECUTE 'INSERT INTO session_rollup SELECT c.user_id, c.session_id, c.metric_type,' || aggregates ||
            'FROM changed_session c JOIN metrics m USING (user_id, session_id, metric_type)
             WHERE m.timestamp >= c.first_at AND m.timestamp <= c.last_at AND m.timestamp >= $1 AND m.timestamp <= $2
             GROUP BY c.user_id, c.session_id, c.metric_type' USING earliest, latest;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    SELECT min(day), max(day) + 1 INTO earliest, latest FROM changed_day;
    DELETE FROM user_day_rollup r USING changed_day c
    WHERE (r.user_id, r.day, r.metric_type) = (c.user_id, c.day, c.metric_type);
    EXECUTE 'INSERT INTO user_day_rollup SELECT c.user_id, c.day, c.metric_type,' || aggregates ||
            'FROM changed_day c JOIN metrics m USING (user_id, metric_type)
             WHERE m.timestamp >= c.day AND m.timestamp < c.day + 1 AND m.timestamp >= $1 AND m.timestamp < $2
             GROUP BY c.user_id, c.day, c.metric_type' USING earliest, latest;
    GET DIAGNOSTICS days = ROW_COUNT;

    DELETE FROM type_hour_rollup r USING changed_hour c WHERE (r.metric_type, r.hour) = (c.metric_type, c.hour);
    FOR earliest, latest IN
        SELECT min(hour), max(hour) + interval '1 hour' FROM changed_hour GROUP BY date_trunc('month', hour)
    LOOP
        EXECUTE 'INSERT INTO type_hour_rollup SELECT c.metric_type, c.hour,' || aggregates ||
                'FROM changed_hour c JOIN metrics m USING (metric_type)
                 WHERE date_trunc(''hour'', m.timestamp) = c.hour AND m.timestamp >= $1 AND m.timestamp < $2
                 GROUP BY c.metric_type, c.hour' USING earliest, latest;
        GET DIAGNOSTICS hours_added = ROW_COUNT;
        hours := hours + hours_added;
    END LOOP;

    UPDATE summary_state SET seen_before = next_before, seen_xid = next_xid, refreshed_at = now();
    RETURN json_build_object('metrics', metrics_new, 'sessions', sessions, 'user_days', days, 'type_hours', hours);
END
$function$;

-- The oldest transaction whose rows this statement may not see. functions/citus has another version.
CREATE OR REPLACE FUNCTION first_unseen_xid() RETURNS xid8
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS 'SELECT pg_snapshot_xmin(pg_current_snapshot())';
