"""`api/overview`: what was stored in a time range, from the hourly and daily summaries.

Whole hours and days come from the summaries. The metrics themselves are read for what is left at either end of a range
that does not begin and end on the hour, and, as a sample, for the delay, of which there is no summary.
"""

from typing import Any

from metrics_ingest.dashboard.parameters import DAY, HOUR, Parameters, Range
from metrics_ingest.dashboard.reader import Row, Session

PARAMETERS = ("from", "to")
DELAY_SAMPLE = 3_000  # metrics
DELAY_ALL = 5_000  # up to so many metrics in the range are all looked at
MOST_REFUSED = 100_000  # counted by code, the newest first

# One row for each type and hour, and for each type and the parts of hours at the ends of the range.
HOURS = """
        SELECT metric_type, metric_count, exact_total, lowest, highest, true_count, last_at, last_value
        FROM type_hour_rollup
        WHERE hour >= CAST(:hours_start AS timestamptz) AND hour < CAST(:hours_end AS timestamptz)
"""
END = """
        UNION ALL
        SELECT metric_type, count(*), sum(value::text::numeric), min(value), max(value),
               count(*) FILTER (WHERE value <> 0), max(timestamp),
               (array_agg(value ORDER BY timestamp DESC, value DESC))[1]
        FROM metrics
        WHERE timestamp >= CAST({start} AS timestamptz) AND timestamp < CAST({end} AS timestamptz)
        GROUP BY metric_type
"""
ENDS = END.format(start=":start", end=":hours_start") + END.format(start=":hours_end", end=":end")
TYPES = """
    WITH bucket AS ({buckets}),
    whole AS (
        SELECT metric_type, sum(metric_count)::bigint AS metric_count, sum(exact_total) AS exact_total,
               min(lowest) AS lowest, max(highest) AS highest, sum(true_count)::bigint AS true_count,
               (array_agg(last_value ORDER BY last_at DESC))[1] AS last_value
        FROM bucket
        GROUP BY metric_type
    )
    SELECT metric_type, kind, unit, aggregation, COALESCE(metric_count, 0) AS metrics,
           CASE WHEN metric_count > 0 THEN
               bucket_value(aggregation, metric_count, nearest_float8(exact_total), lowest, highest, true_count,
                            last_value, exact_total) END AS value,
           CASE WHEN kind = 'flag' THEN true_count::float8 / metric_count END AS share,
           lowest AS min_value, highest AS max_value
    FROM metric_types
    LEFT JOIN whole USING (metric_type)
    WHERE retired_at IS NULL OR metric_count > 0
    ORDER BY metric_types.created_at, metric_type
"""
TYPES_OF_HOURS = TYPES.format(buckets=HOURS)
TYPES_OF_ANY_RANGE = TYPES.format(buckets=HOURS + ENDS)

# Users of the days at the ends of a range. Where such a day lies across an end, its first or its last metric says
# whether there is one inside. Only for a day that begins before the range and ends after it the metrics are looked at.
USERS_OF_END_DAYS = """
    SELECT DISTINCT user_id
    FROM user_day_rollup
    WHERE day IN (CAST(:first_day AS date), CAST(:last_day AS date))
      AND last_at >= CAST(:start AS timestamptz) AND first_at < CAST(:end AS timestamptz)
      AND (first_at >= CAST(:start AS timestamptz) OR last_at < CAST(:end AS timestamptz) OR EXISTS (
          SELECT FROM metrics
          WHERE metrics.user_id = user_day_rollup.user_id
            AND timestamp >= CAST(:start AS timestamptz) AND timestamp < CAST(:end AS timestamptz)))
"""
# A minimum looks each user up in the primary key alone, and stops at the first day: 10,000 look-ups. Counting the
# distinct users of 90 days reads a million entries, and Citus takes no LATERAL with a LIMIT.
BETWEEN = """
    SELECT min(day) FROM user_day_rollup
    WHERE user_day_rollup.user_id = {user}.user_id AND day > CAST(:first_day AS date) AND day < CAST(:last_day AS date)
"""
USERS_OF_TWO_DAYS = f"SELECT count(*) AS users FROM ({USERS_OF_END_DAYS}) AS active"
USERS = f"""
    SELECT (SELECT count(*) FROM users WHERE ({BETWEEN.format(user="users")}) IS NOT NULL)
         + (SELECT count(*) FROM ({USERS_OF_END_DAYS}) AS active
            WHERE ({BETWEEN.format(user="active")}) IS NULL) AS users
"""
SESSIONS = """
    SELECT count(*) AS sessions FROM sessions
    WHERE start_time >= CAST(:start AS timestamptz) AND start_time < CAST(:end AS timestamptz)
"""
DELAY = """
    SELECT count(*) AS sample,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY received_at - timestamp) AS p50,
           percentile_disc(0.99) WITHIN GROUP (ORDER BY received_at - timestamp) AS p99
    FROM metrics {sample}
    WHERE timestamp >= CAST(:start AS timestamptz) AND timestamp < CAST(:end AS timestamptz)
"""
DELAY_OF_ALL = DELAY.format(sample="")
# REPEATABLE, so that a refreshed page does not show another figure for the same metrics.
DELAY_OF_SAMPLE = DELAY.format(sample="TABLESAMPLE SYSTEM (:percent) REPEATABLE (1)")

REFUSED = """
    SELECT code, count(*) AS refused
    FROM (SELECT codes FROM rejected_metrics
          WHERE received_at >= CAST(:start AS timestamptz) AND received_at < CAST(:end AS timestamptz)
          ORDER BY received_at DESC LIMIT :most) AS kept, unnest(codes) AS code
    GROUP BY code
    ORDER BY refused DESC, code
"""
VERSION = """
    SELECT concat_ws(' ', refreshed_at, unseen, (SELECT count(*) || ' ' || max(hour) FROM summary_repairs)) AS version
    FROM summary_state
"""
STATE = f"SELECT ({VERSION}) AS version, (SELECT max(received_at) FROM rejected_metrics) AS newest_refused"
# COALESCE evaluates its arguments one after the other: the block-range index makes the first ones cheap. The first one
# that finds anything reads all that was received in its time, which can be 10,000 metrics a second.
FRESHNESS = """
    SELECT COALESCE(
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '1 second'),
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '15 seconds'),
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '3 minutes'),
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '1 hour'),
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '6 hours'),
               (SELECT max(received_at) FROM metrics WHERE received_at >= now() - interval '2 days'),
               (SELECT max(received_at) FROM metrics)) AS last_received_at,
           (SELECT refreshed_at FROM summary_state) AS refreshed_at,
           (SELECT min(first.hour) FROM metric_types, LATERAL (
                SELECT hour FROM type_hour_rollup WHERE type_hour_rollup.metric_type = metric_types.metric_type
                ORDER BY hour LIMIT 1) AS first) AS first_hour,
           (SELECT max(last.hour) FROM metric_types, LATERAL (
                SELECT hour FROM type_hour_rollup WHERE type_hour_rollup.metric_type = metric_types.metric_type
                ORDER BY hour DESC LIMIT 1) AS last) AS last_hour,
           now() AS now
"""


def plan(parameters: Parameters) -> Any:
    """Return what reads the overview of the range."""
    wanted = parameters.range()
    return lambda session: overview(session, wanted)


def overview(session: Session, wanted: Range) -> Row:
    """All figures of the range."""
    version = version_of(session)
    types = types_in(session, wanted)
    metrics = sum(row["metrics"] for row in types)
    refused = session.rows(REFUSED, start=wanted.start, end=wanted.end, most=MOST_REFUSED)
    return {
        "from": wanted.start,
        "to": wanted.end,
        "metrics": metrics,
        "users": session.remember(("users", wanted, version), lambda: users_in(session, wanted)),
        **session.remember(("sessions", wanted, version), lambda: sessions_in(session, wanted)),
        "types": types,
        "delay": delay_in(session, wanted, metrics),
        "refused": {row["code"]: row["refused"] for row in refused},
        **freshness(session),
    }


def freshness(session: Session) -> Row:
    """When the last metric was received, when the summaries were refreshed, and which hours they have."""
    return session.row(FRESHNESS)


def types_in(session: Session, wanted: Range) -> list[Row]:
    """For each type how many metrics there were, and their aggregate."""
    hours = wanted.inward(HOUR)
    bounds = {"hours_start": hours.start, "hours_end": hours.end}
    if hours == wanted:
        return session.rows(TYPES_OF_HOURS, **bounds)
    return session.rows(TYPES_OF_ANY_RANGE, start=wanted.start, end=wanted.end, **bounds)


def users_in(session: Session, wanted: Range) -> int:
    """How many users have a metric in the range."""
    days = wanted.outward(DAY)
    sql = USERS if days.length > 2 * DAY else USERS_OF_TWO_DAYS
    row = session.row(
        sql, first_day=days.start, last_day=days.end - DAY, start=wanted.start, end=wanted.end
    )  # fmt: skip
    users: int = row["users"]
    return users


def sessions_in(session: Session, wanted: Range) -> Row:
    """How many sessions began in the range."""
    return session.row(SESSIONS, start=wanted.start, end=wanted.end)


def version_of(session: Session) -> str:
    """What changes with every change of the summaries: a refresh, or an erasure, which leaves hours to be repaired."""
    version: str | None = session.row(VERSION)["version"]
    return version or ""


def state_of(session: Session) -> tuple[Any, ...]:
    """What changes with the summaries and with every rejected metric. To be asked before everything else."""
    return session.before(STATE)


def delay_in(session: Session, wanted: Range, metrics: int) -> Row:
    """How long after their timestamp metrics were received: seconds, and of how many metrics that was computed."""
    bounds = {"start": wanted.start, "end": wanted.end}
    if metrics <= DELAY_ALL:
        row = session.row(DELAY_OF_ALL, **bounds)
    else:
        row = session.row(DELAY_OF_SAMPLE, percent=100 * DELAY_SAMPLE / metrics, **bounds)
    delays = {name: row[name].total_seconds() if row[name] is not None else None for name in ("p50", "p99")}
    return {**delays, "unit": "s", "sample": row["sample"]}
