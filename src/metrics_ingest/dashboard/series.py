"""`api/series` and `api/activity`: values by time, for charts."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from metrics_ingest.dashboard.overview import version_of
from metrics_ingest.dashboard.parameters import DAY, HOUR, Parameters, Range, refuse
from metrics_ingest.dashboard.reader import Row, Session
from metrics_ingest.dashboard.types import find

PARAMETERS = ("metric_type", "user_id", "from", "to", "step")
ACTIVITY_PARAMETERS = ("from", "to", "step")
STEPS = {"hour": HOUR, "day": DAY, "5min": timedelta(minutes=5)}
# What one reply can cover; hours of three years are 26,000 points.
LONGEST = {"hour": 3 * 366 * DAY, "day": 200 * 366 * DAY, "5min": 6 * HOUR}
USERS_BY_HOUR = 2 * DAY  # distinct users by the hour are in no summary

HOURS_OF_TYPE = """
    SELECT extract(epoch FROM hour)::bigint AS at, metric_count, exact_total, lowest, highest, true_count, last_value
    FROM type_hour_rollup
    WHERE metric_type = :metric_type AND hour >= CAST(:start AS timestamptz) AND hour < CAST(:end AS timestamptz)
"""
DAYS_OF_TYPE = """
    SELECT extract(epoch FROM date_trunc('day', hour, 'UTC'))::bigint AS at, sum(metric_count)::bigint AS metric_count,
           sum(exact_total) AS exact_total, min(lowest) AS lowest, max(highest) AS highest,
           sum(true_count)::bigint AS true_count,
           (array_agg(last_value ORDER BY last_at DESC))[1] AS last_value
    FROM type_hour_rollup
    WHERE metric_type = :metric_type AND hour >= CAST(:start AS timestamptz) AND hour < CAST(:end AS timestamptz)
    GROUP BY at
"""
DAYS_OF_USER = """
    SELECT extract(epoch FROM day)::bigint AS at, metric_count, exact_total, lowest, highest, true_count, last_value
    FROM user_day_rollup
    WHERE user_id = :user_id AND metric_type = :metric_type
      AND day >= CAST(:start AS date) AND day < CAST(:end AS date)
"""
BUCKETS_OF_5_MINUTES = """
    SELECT extract(epoch FROM date_bin('5 minutes', timestamp, '2000-01-01Z'))::bigint AS at, count(*) AS metric_count,
           sum(value::text::numeric) AS exact_total, min(value) AS lowest, max(value) AS highest,
           count(*) FILTER (WHERE value <> 0) AS true_count,
           (array_agg(value ORDER BY timestamp DESC, value DESC))[1] AS last_value
    FROM metrics
    WHERE metric_type = :metric_type
      AND timestamp >= CAST(:start AS timestamptz) AND timestamp < CAST(:end AS timestamptz)
    GROUP BY at
"""
# As one JSON value, which is decoded ten times as fast as rows: hours of 90 days are 2,000 points. JSON has no
# infinity.
SERIES = """
    SELECT COALESCE(json_agg(json_build_array(
               at, CASE WHEN abs(value) < 'infinity' THEN value END, metric_count, lowest, highest,
               true_count::float8 / metric_count) ORDER BY at), '[]') AS rows
    FROM (SELECT *, bucket_value(:aggregation, metric_count, nearest_float8(exact_total), lowest, highest, true_count,
                                 last_value, exact_total) AS value
          FROM ({buckets}) AS bucket) AS valued
"""
SERIES_BY_STEP = {
    "hour": SERIES.format(buckets=HOURS_OF_TYPE),
    "day": SERIES.format(buckets=DAYS_OF_TYPE),
    "5min": SERIES.format(buckets=BUCKETS_OF_5_MINUTES),
}
SERIES_OF_USER = SERIES.format(buckets=DAYS_OF_USER)

ACTIVITY = """
    SELECT extract(epoch FROM {bucket})::bigint AS at, {figure} AS figure
    FROM {table}
    WHERE {time} >= CAST(:start AS {kind}) AND {time} < CAST(:end AS {kind})
    GROUP BY at
"""
RAW = {"table": "metrics", "time": "timestamp", "kind": "timestamptz"}
SESSIONS = {"figure": "count(*)", "table": "sessions", "time": "start_time", "kind": "timestamptz"}
HOURS = {"figure": "sum(metric_count)::bigint", "table": "type_hour_rollup", "time": "hour", "kind": "timestamptz"}
DAYS = {"figure": "count(*)", "table": "active", "time": "day", "kind": "date"}
# By hashing: count(DISTINCT …) sorts, which takes three times as long for a million rows.
USERS_BY_DAY = """
    WITH active AS (
        SELECT DISTINCT day, user_id FROM user_day_rollup
        WHERE day >= CAST(:start AS date) AND day < CAST(:end AS date))
"""


def _activity(metrics: str, users: str, sessions: str) -> dict[str, str]:
    return {"metrics": metrics, "users": users, "sessions": sessions}


def _by(bucket: str, **parts: str) -> str:
    return ACTIVITY.format(bucket=bucket.format(parts["time"]), **parts)


BY_5_MINUTES, BY_HOUR, BY_DAY = (
    "date_bin('5 minutes', {}, '2000-01-01Z')", "date_trunc('hour', {}, 'UTC')", "date_trunc('day', {}, 'UTC')"
)  # fmt: skip
ACTIVITY_BY_STEP = {
    "5min": _activity(
        _by(BY_5_MINUTES, figure="count(*)", **RAW),
        _by(BY_5_MINUTES, figure="count(DISTINCT user_id)", **RAW),
        _by(BY_5_MINUTES, **SESSIONS),
    ),
    "hour": _activity(
        _by(BY_HOUR, **HOURS), _by(BY_HOUR, figure="count(DISTINCT user_id)", **RAW), _by(BY_HOUR, **SESSIONS)
    ),
    "day": _activity(_by(BY_DAY, **HOURS), USERS_BY_DAY + _by("{}", **DAYS), _by(BY_DAY, **SESSIONS)),
}


def plan(parameters: Parameters) -> Any:
    """Return what reads one type's values, one for each step that has metrics."""
    metric_type = parameters.metric_type(required=True)
    step, wanted = _step_and_range(parameters)
    user_id = parameters.uuid("user_id") if parameters.has("user_id") else None
    if user_id and step != "day":
        refuse("invalid_field", "the series of a user has only step=day", "step")
    return lambda session: series(session, metric_type, user_id, step, wanted)


def series(session: Session, metric_type: str | None, user_id: UUID | None, step: str, wanted: Range) -> Row:
    """`points` are [epoch seconds, value, count]; `bands` [least, greatest] and, of flags, `shares` run beside."""
    kind = find(session, metric_type)
    bounds = {"metric_type": metric_type, "aggregation": kind["aggregation"], "start": wanted.start, "end": wanted.end}
    if user_id:
        rows = session.row(SERIES_OF_USER, user_id=user_id, **bounds)["rows"]
    else:
        rows = session.row(SERIES_BY_STEP[step], **bounds)["rows"]
    return {
        **kind,
        "step": step,
        "from": wanted.start,
        "to": wanted.end,
        "points": [row[:3] for row in rows],
        "bands": [row[3:5] for row in rows],
        "shares": [row[5] for row in rows] if kind["kind"] == "flag" else None,
    }


def activity_plan(parameters: Parameters) -> Any:
    """Return what counts metrics, users and sessions, for each step that has any."""
    step, wanted = _step_and_range(parameters)
    return lambda session: activity(session, step, wanted)


def activity(session: Session, step: str, wanted: Range) -> Row:
    """`points` are [epoch seconds, metrics, users, sessions]; users is null by the hour beyond two days."""
    queries = dict(ACTIVITY_BY_STEP[step])
    if step == "hour" and wanted.length > USERS_BY_HOUR:
        del queries["users"]
    bounds = {"start": wanted.start, "end": wanted.end}

    def read(name: str) -> dict[int, int]:
        return {row["at"]: row["figure"] for row in session.rows(queries[name], **bounds)}

    if step == "day":  # a scan of the users' days, and of the sessions
        key = ("by day", wanted, version_of(session))
        found = session.remember(key, lambda: {name: read(name) for name in queries})
    else:
        found = {name: read(name) for name in queries}
    times = sorted(set().union(*found.values()))
    missing = {"users": None} if "users" not in found else {}
    return {
        "step": step,
        "from": wanted.start,
        "to": wanted.end,
        "points": [
            [
                at,
                *(
                    missing.get(name) if name in missing else found[name].get(at, 0)
                    for name in ("metrics", "users", "sessions")
                ),
            ]
            for at in times
        ],
    }


def _step_and_range(parameters: Parameters) -> tuple[str, Range]:
    step = parameters.choice("step", tuple(STEPS), "hour")
    wanted = parameters.range().outward(STEPS[step])
    if wanted.length > LONGEST[step]:
        refuse(
            "invalid_field",
            f"step={step} serves at most {LONGEST[step].total_seconds() / 86_400:g} days; take a longer step",
            "step",
        )
    return step, wanted


def series_rows(reply: Row) -> list[Row]:
    """The reply as rows of a table."""
    shares = reply["shares"] or [None] * len(reply["points"])
    return [
        {"epoch_s": at, "value": value, "metrics": count, "min_value": low, "max_value": high, "share": share}
        for (at, value, count), (low, high), share in zip(reply["points"], reply["bands"], shares, strict=True)
    ]


def activity_rows(reply: Row) -> list[Row]:
    """The reply as rows of a table."""
    return [dict(zip(("epoch_s", "metrics", "users", "sessions"), point, strict=True)) for point in reply["points"]]
