"""The figures of the API equal SQL over the raw metrics, whatever the range."""

import csv
import io
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from dashboard.conftest import Board
from dashboard.data import DAY, FORMULA, get, read
from support.metrics import register
from support.processes import Server, query

HOUR = timedelta(hours=1)
METRIC = DAY + timedelta(minutes=205, seconds=100 + 3 * 163)  # of a user who has the next one 163 s later
RANGES = {
    "midnights": (DAY, DAY + timedelta(days=3)),
    "everything": (DAY - timedelta(days=400), DAY + timedelta(days=400)),
    "hours": (DAY + 5 * HOUR, DAY + 53 * HOUR),
    "within an hour": (DAY + 7 * HOUR + timedelta(minutes=2), DAY + 7 * HOUR + timedelta(minutes=40)),
    "an hour and more": (DAY + timedelta(minutes=391), DAY + timedelta(minutes=481)),
    "nothing aligned": (DAY + timedelta(hours=3.21), DAY + timedelta(hours=77.77)),
    "within a day": (DAY + timedelta(hours=3.4), DAY + timedelta(hours=20.1)),
    "between two metrics": (METRIC + timedelta(seconds=1), METRIC + timedelta(seconds=162)),
    "empty": (DAY - timedelta(days=9, hours=1.5), DAY - timedelta(days=8)),
}
TYPES = """
    SELECT t.metric_type, count(value),
           CASE aggregation WHEN 'sum' THEN sum(value) WHEN 'mean' THEN avg(value) WHEN 'any' THEN max(value) END,
           CASE WHEN kind = 'flag' THEN avg(value) END, min(value), max(value)
    FROM metric_types t LEFT JOIN metrics m ON m.metric_type = t.metric_type AND timestamp >= :a AND timestamp < :b
    GROUP BY t.metric_type
"""


def approx(value: Any) -> Any:
    return pytest.approx(value) if isinstance(value, float) else value


@pytest.mark.parametrize("name", RANGES)
def test_overview_equals_the_raw_metrics(board: Board, name: str) -> None:
    start, end = RANGES[name]
    reply = read(board.server, "overview", start=start.isoformat(), end=end.isoformat())
    where = "FROM metrics WHERE timestamp >= :a AND timestamp < :b"
    ((metrics, users, p50, p99),) = board.sql(
        "SELECT count(*), count(DISTINCT user_id),"
        " extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY received_at - timestamp))::float8,"
        f" extract(epoch FROM percentile_disc(0.99) WITHIN GROUP (ORDER BY received_at - timestamp))::float8 {where}",
        a=start, b=end,
    )  # fmt: skip
    ((sessions,),) = board.sql(
        "SELECT count(*) FROM (SELECT min(timestamp) AS began FROM metrics GROUP BY user_id, session_id) AS session"
        " WHERE began >= :a AND began < :b", a=start, b=end,
    )  # fmt: skip
    assert (reply["metrics"], reply["users"], reply["sessions"]) == (metrics, users, sessions)
    assert reply["delay"] == {"p50": approx(p50), "p99": approx(p99), "unit": "s", "sample": metrics}
    found = {
        row["metric_type"]: [row["metrics"], row["value"], row["share"], row["min_value"], row["max_value"]]
        for row in reply["types"]
    }
    assert found == {kind: [approx(value) for value in values] for kind, *values in board.sql(TYPES, a=start, b=end)}
    refused = board.sql(
        "SELECT code, count(*) FROM rejected_metrics, unnest(codes) code"
        " WHERE received_at >= :a AND received_at < :b GROUP BY code", a=start, b=end,
    )  # fmt: skip
    assert reply["refused"] == dict(refused)
    if name == "everything":
        assert metrics > 500


def test_overview_says_how_fresh_it_is(board: Board) -> None:
    reply = read(board.server, "overview")
    ((last, refreshed, first_hour, last_hour),) = board.sql(
        "SELECT max(received_at), (SELECT refreshed_at FROM summary_state), date_trunc('hour', min(timestamp)),"
        " date_trunc('hour', max(timestamp)) FROM metrics"
    )
    assert datetime.fromisoformat(reply["last_received_at"]) == last
    assert datetime.fromisoformat(reply["refreshed_at"]) == refreshed
    assert datetime.fromisoformat(reply["first_hour"]) == first_hour
    assert datetime.fromisoformat(reply["last_hour"]) == last_hour
    assert reply.keys() >= read(board.server, "freshness").keys()


@pytest.mark.parametrize(("step", "bucket"), [
    ("hour", "date_trunc('hour', timestamp, 'UTC')"), ("day", "date_trunc('day', timestamp, 'UTC')"),
    ("5min", "date_bin('5 minutes', timestamp, '2000-01-01Z')"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["talked_time", "voice_sentiment", "microphone_used", "reaction_time"])
def test_series_equals_the_raw_metrics(board: Board, step: str, bucket: str, kind: str) -> None:
    length = timedelta(hours=5) if step == "5min" else timedelta(days=4)
    reply = read(
        board.server, "series", metric_type=kind, step=step, start=(DAY + 3 * HOUR).isoformat(),
        end=(DAY + 3 * HOUR + length).isoformat(),
    )  # fmt: skip
    rows = board.sql(
        f"SELECT extract(epoch FROM {bucket})::bigint AS at, count(*), sum(value), avg(value), max(value), min(value)"
        " FROM metrics WHERE metric_type = :kind AND timestamp >= :a AND timestamp < :b GROUP BY at ORDER BY at",
        kind=kind, a=datetime.fromisoformat(reply["from"]), b=datetime.fromisoformat(reply["to"]),
    )  # fmt: skip
    assert len(rows) >= 4
    column = {"sum": 2, "mean": 3, "any": 4}[reply["aggregation"]]
    assert reply["points"] == [[row[0], approx(row[column]), row[1]] for row in rows]
    assert reply["bands"] == [[row[5], row[4]] for row in rows]
    assert reply["shares"] == ([approx(row[3]) for row in rows] if kind == "microphone_used" else None)


def test_series_of_a_user_equals_the_raw_metrics(board: Board) -> None:
    user = board.sql("SELECT user_id FROM sessions LIMIT 1")[0][0]
    reply = read(
        board.server, "series", metric_type="talked_time", user_id=user, step="day", start=DAY.isoformat(),
        end=(DAY + timedelta(days=9)).isoformat(),
    )  # fmt: skip
    assert reply["points"] == board.sql(
        "SELECT extract(epoch FROM date_trunc('day', timestamp, 'UTC'))::bigint AS at, sum(value), count(*)"
        " FROM metrics WHERE user_id = :user AND metric_type = 'talked_time' GROUP BY at ORDER BY at", user=user,
    )  # fmt: skip


@pytest.mark.parametrize(("step", "days"), [("hour", 2), ("day", 9), ("5min", 0.25)])
def test_activity_equals_the_raw_metrics(board: Board, step: str, days: float) -> None:
    reply = read(
        board.server, "activity", step=step, start=(DAY + 3 * HOUR).isoformat(),
        end=(DAY + 3 * HOUR + timedelta(days=days - 0.05)).isoformat(),
    )  # fmt: skip
    bucket = "date_bin('5 minutes', {}, '2000-01-01Z')" if step == "5min" else f"date_trunc('{step}', {{}}, 'UTC')"
    bounds = {"a": datetime.fromisoformat(reply["from"]), "b": datetime.fromisoformat(reply["to"])}
    rows = board.sql(
        "SELECT extract(epoch FROM at)::bigint, COALESCE(n, 0), COALESCE(u, 0), COALESCE(s, 0) FROM"
        f" (SELECT {bucket.format('timestamp')} AS at, count(*) AS n, count(DISTINCT user_id) AS u FROM metrics"
        "   WHERE timestamp >= :a AND timestamp < :b GROUP BY 1) AS m FULL JOIN"
        f" (SELECT {bucket.format('start_time')} AS at, count(*) AS s FROM sessions"
        "   WHERE start_time >= :a AND start_time < :b GROUP BY 1) AS s USING (at) ORDER BY at",
        **bounds,
    )
    assert len(rows) >= 3
    assert reply["points"] == rows


def test_activity_by_the_hour_leaves_users_out_of_long_ranges(board: Board) -> None:
    reply = read(board.server, "activity", start=DAY.isoformat(), end=(DAY + timedelta(days=5)).isoformat())
    assert {point[2] for point in reply["points"]} == {None}


def test_users_equal_the_raw_metrics(board: Board) -> None:
    start, end = DAY + timedelta(hours=20), DAY + timedelta(days=2, hours=4)
    reply = read(board.server, "users", start=start.isoformat(), end=end.isoformat(), metric_type="reaction_time")
    rows = board.sql(
        "SELECT user_id::text, count(*), sum(value) FILTER (WHERE metric_type = 'talked_time'),"
        " avg(value) FILTER (WHERE metric_type = 'voice_sentiment'),"
        " avg(value) FILTER (WHERE metric_type = 'reaction_time'),"
        " max(timestamp) FROM metrics WHERE timestamp >= :a AND timestamp < :b GROUP BY user_id",
        a=DAY, b=DAY + timedelta(days=3),
    )  # fmt: skip
    found = {
        user["user_id"]: (user["metrics"], user["talked_time_s"], user["mean_sentiment"], user["value"],
                          datetime.fromisoformat(user["last_seen_at"]))
        for user in reply["users"]
    }  # fmt: skip
    assert found == {user: tuple(map(approx, figures)) for user, *figures in rows}
    assert reply["total"] == len(rows) >= 6
    sessions = board.sql(
        "SELECT user_id::text, count(*) FROM sessions WHERE start_time >= :a AND start_time < :b GROUP BY user_id",
        a=DAY, b=DAY + timedelta(days=3),
    )  # fmt: skip
    assert {user["user_id"]: user["sessions"] for user in reply["users"]} == dict(sessions)


def test_session_is_its_summary_and_its_raw_metrics(board: Board) -> None:
    user, session = board.sql("SELECT user_id, session_id FROM sessions LIMIT 1")[0]
    reply = read(board.server, "session", user_id=user, session_id=session)
    rows = board.sql(
        "SELECT timestamp, metric_type, value, received_at, metric_id::text FROM metrics WHERE session_id = :s"
        " ORDER BY timestamp, metric_id", s=session,
    )  # fmt: skip
    assert [[datetime.fromisoformat(metric["timestamp"]), metric["metric_type"], metric["value"],
             datetime.fromisoformat(metric["received_at"]), metric["metric_id"]]
            for metric in reply["metrics"]] == rows  # fmt: skip
    assert (reply["more"], reply["summary"]["metric_count"]) == (False, 30)
    talked = sum(row[2] for row in rows if row[1] == "talked_time")
    assert reply["summary"]["talked_time_s"] == approx(talked)
    bounds = {"start": DAY.isoformat(), "end": (DAY + timedelta(days=9)).isoformat()}
    assert reply["summary"] in read(board.server, "sessions", user_id=user, **bounds)["sessions"]


def test_csv_of_a_list_has_the_same_rows_as_json(board: Board) -> None:
    bounds = {"start": DAY.isoformat(), "end": (DAY + timedelta(days=9)).isoformat()}
    user = board.sql("SELECT user_id FROM sessions LIMIT 1")[0][0]
    session = board.sql("SELECT session_id FROM sessions WHERE user_id = :u LIMIT 1", u=user)[0][0]
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "types": ({}, "types"), "users": (bounds, "users"), "sessions": ({**bounds, "user_id": user}, "sessions"),
        "session": ({"user_id": user, "session_id": session}, "metrics"), "rejected": (bounds, "rejected"),
        "series": ({**bounds, "metric_type": "talked_time"}, "points"), "activity": (bounds, "points"),
        "overview": (bounds, "types"),
    }  # fmt: skip
    for name, (parameters, key) in cases.items():
        answer = get(board.server, name, format="csv", **parameters)
        assert answer.headers["Content-Type"].startswith("text/csv")
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.csv"'
        rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
        expected = read(board.server, name, **parameters)[key]
        assert len(rows) == len(expected) > 0, name
        if key == "users":
            assert [row["user_id"] for row in rows] == [user["user_id"] for user in expected]
            assert [float(row["talked_time_s"]) for row in rows] == [user["talked_time_s"] for user in expected]


def test_csv_cells_are_no_formulas(board: Board) -> None:

    answer = get(board.server, "users", format="csv", start=DAY.isoformat(), end=(DAY + timedelta(days=9)).isoformat())
    names = [row["name"] for row in csv.DictReader(io.StringIO(answer.content.decode()))]
    assert f"'{FORMULA}" in names
    assert not any(name.startswith("=") for name in names)


def test_sums_beyond_a_float_are_null_and_break_nothing(database_url: str, serve: Callable[..., Server]) -> None:
    user = register(database_url)
    for sql in (
        "INSERT INTO metric_types (metric_type, kind, aggregation) VALUES ('huge', 'counter', 'sum')",
        f"INSERT INTO sessions VALUES ('{user}', '{user}', '{DAY}')",
        f"INSERT INTO metrics SELECT '{user}', CAST('{DAY}' AS timestamptz) + n * interval '1 minute',"
        f" gen_random_uuid(), '{user}', 'huge', 1e308 FROM generate_series(1, 4) AS n",
        "SELECT refresh_summaries()",
    ):
        query(database_url, sql)
    server = serve("dashboard", database_url)
    for end in (DAY + timedelta(hours=2), DAY + timedelta(minutes=10)):
        types = read(server, "overview", start=DAY.isoformat(), end=end.isoformat())["types"]
        found = [(row["metric_type"], row["value"], row["max_value"]) for row in types if row["metrics"]]
        assert found == [("huge", None, 1e308)]
    day = {"start": DAY.isoformat(), "end": (DAY + timedelta(hours=2)).isoformat(), "metric_type": "huge"}
    for step in ("hour", "day", "5min"):
        assert read(server, "series", step=step, **day)["points"][0][1:] == [None, 4]
    assert [row["value"] for row in read(server, "users", **day)["users"]] == [None]
