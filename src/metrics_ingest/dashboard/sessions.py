"""`api/sessions` and `api/session`: the sessions of a user, and one session with its metrics."""

from typing import Any
from uuid import UUID

from metrics_ingest.dashboard.parameters import Parameters, cursor, instant, refuse
from metrics_ingest.dashboard.reader import Row, Session

PARAMETERS = ("user_id", "from", "to", "limit", "after")
SESSION_PARAMETERS = ("user_id", "session_id")
LIMIT, MOST, MOST_CSV = 50, 1_000, 10_000
MOST_METRICS = 5_000

USER = "SELECT user_id, name, created_at FROM users WHERE user_id = :user_id"
COLUMNS = """
    session_id, first_metric_at, last_metric_at, extract(epoch FROM duration)::float8 AS duration_s, metric_count,
    talked_time_s, microphone_used, speaker_used, mean_sentiment, sentiment_shift, metrics
"""
SESSIONS = f"""
    SELECT {COLUMNS}
    FROM session_summary
    WHERE user_id = :user_id
      AND last_metric_at >= CAST(:start AS timestamptz) AND first_metric_at < CAST(:end AS timestamptz)
      AND (CAST(:after_id AS uuid) IS NULL
           OR (first_metric_at, session_id) < (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
    ORDER BY first_metric_at DESC, session_id DESC
    LIMIT :limit
"""
SUMMARY = f"SELECT {COLUMNS} FROM session_summary WHERE user_id = :user_id AND session_id = :session_id"
BEGINNING = """
    SELECT least(start_time, (SELECT min(first_at) FROM session_rollup
                              WHERE user_id = :user_id AND session_id = :session_id)) AS start_time
    FROM sessions
    WHERE user_id = :user_id AND session_id = :session_id
"""
# By the primary key, which is in this order. The summary has no end to give: metrics may be newer than it.
METRICS = """
    SELECT timestamp, metric_type, value, received_at, metric_id
    FROM metrics
    WHERE user_id = :user_id AND session_id = :session_id AND timestamp >= CAST(:start_time AS timestamptz)
    ORDER BY timestamp, metric_id
    LIMIT :limit
"""


def plan(parameters: Parameters) -> Any:
    """Return what reads one page of a user's sessions, the newest first."""
    as_csv = parameters.choice("format", ("json", "csv"), "json") == "csv"
    user_id, wanted = parameters.uuid("user_id"), parameters.range()
    limit = parameters.integer("limit", MOST_CSV if as_csv else LIMIT, 1, MOST_CSV if as_csv else MOST)
    after_at, after_id = parameters.after("sessions", (instant, UUID)) or (None, None)

    def read(session: Session) -> Row:
        user = find_user(session, user_id)
        rows = session.rows(
            SESSIONS,
            user_id=user_id,
            start=wanted.start,
            end=wanted.end,
            limit=limit + 1,
            after_at=after_at,
            after_id=after_id,
        )
        last = rows[limit - 1 : limit]
        more = [cursor("sessions", row["first_metric_at"].isoformat(), row["session_id"]) for row in last]
        return {
            "from": wanted.start,
            "to": wanted.end,
            "user": user,
            "sessions": rows[:limit],
            "next": more[0] if len(rows) > limit else None,
        }

    return read


def session_plan(parameters: Parameters) -> Any:
    """Return what reads one session: its summary (null before the next refresh) and its first 5,000 metrics."""
    user_id, session_id = parameters.uuid("user_id"), parameters.uuid("session_id")
    key = {"user_id": user_id, "session_id": session_id}

    def read(session: Session) -> Row:
        user = find_user(session, user_id)
        beginning = session.rows(BEGINNING, **key)
        if not beginning:
            refuse("not_found", f"the user has no session {session_id}", "session_id")
        summary = session.rows(SUMMARY, **key)
        rows = session.rows(METRICS, **key, **beginning[0], limit=MOST_METRICS + 1)
        return {
            "user": user,
            "session_id": session_id,
            "summary": summary[0] if summary else None,
            "metrics": rows[:MOST_METRICS],
            "more": len(rows) > MOST_METRICS,
        }

    return read


def find_user(session: Session, user_id: UUID) -> Row:
    """The user of this id. Raise RequestRefused when none is registered."""
    rows = session.rows(USER, user_id=user_id)
    if not rows:
        refuse("unknown_user", f"no user {user_id} is registered", "user_id")
    return rows[0]
