"""The summaries: their values, and that they include every metric, whenever it was received."""

import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pg8000.native import DatabaseError

from support.console import Console, ingest
from support.processes import BIN, Postgres, eventually

USER = "00000000-0000-4000-8000-00000000000{}"
DAY = datetime(2024, 8, 8, tzinfo=UTC)
AGGREGATES = """
    count(*), sum(value::text::numeric)::float8, min(value), max(value),
    count(*) FILTER (WHERE value <> 0),
    min(timestamp), (array_agg(value ORDER BY timestamp, value))[1],
    max(timestamp), (array_agg(value ORDER BY timestamp, value))[count(*)::int],
    sum(value::text::numeric)
    FROM metrics GROUP BY 1, 2
"""
# Each rollup with the query that computes it from all of `metrics`.
EXACT = {
    "session_rollup": f"SELECT user_id, session_id, metric_type, {AGGREGATES}, 3",
    "user_day_rollup": f"SELECT user_id, (timestamp AT TIME ZONE 'UTC')::date, metric_type, {AGGREGATES}, 3",
    "type_hour_rollup": f"SELECT metric_type, date_trunc('hour', timestamp), {AGGREGATES}",
}


def differences(console: Console) -> dict[str, list[Any]]:
    """The rows of each rollup that are wrong or missing."""
    return {
        name: rows
        for name, exact in EXACT.items()
        if (rows := console.sql(f"(TABLE {name} EXCEPT ({exact})) UNION ALL (({exact}) EXCEPT TABLE {name})"))
    }


def sample(
    user: int, seconds: float, metric_type: str, value: float, session: int = 1, number: int = 0
) -> dict[str, Any]:
    """A metric, so many seconds after midnight; its identity follows from all of it but the value."""
    identity = hash((user, seconds, metric_type, session, number)) & (2**64 - 1)
    return {"user_id": USER.format(user), "timestamp": (DAY + timedelta(seconds=seconds)).isoformat(), "value": value,
            "metric_type": metric_type, "session_id": str(UUID(int=session)),
            "metric_id": str(UUID(int=identity))}  # fmt: skip


@pytest.fixture
def users(console: Console) -> Console:
    for user in range(3):
        console.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=USER.format(user))
    return console


def test_session_summary_says_what_a_session_was(users: Console) -> None:
    users.ingest(
        sample(1, 30, "talked_time", 10), sample(1, 10, "talked_time", 2.5), sample(1, 0, "microphone_used", 0),
        sample(1, 20, "microphone_used", 1), sample(1, 5, "speaker_used", 0), sample(1, 5, "voice_sentiment", -0.5),
        sample(1, 50, "voice_sentiment", 0.75), sample(1, 25, "voice_sentiment", 0.5), sample(2, 9, "talked_time", 1),
    )  # fmt: skip
    users.run("summaries", "refresh")
    ((*row, metrics),) = users.sql(
        "SELECT first_metric_at, last_metric_at, duration::text, metric_count, talked_time_s, microphone_used,"
        " speaker_used,"
        " mean_sentiment, sentiment_shift, metrics FROM session_summary WHERE user_id = :u", u=USER.format(1),
    )  # fmt: skip
    assert row == [DAY, DAY + timedelta(seconds=50), "00:00:50", 8, 12.5, True, False, 0.25, 1.25]
    assert metrics == {"talked_time": 12.5, "microphone_used": 1, "speaker_used": 0, "voice_sentiment": 0.25}


def test_session_summaries_have_every_type_aggregated_as_the_type_says(users: Console) -> None:
    """A type that was added later, and one of the four with columns after a change of its aggregation."""
    users.run("type", "add", "thing", "--kind", "gauge", "--aggregation", "max")
    users.ingest(sample(1, 2, "thing", 5), sample(1, 1, "thing", 2), sample(1, 3, "thing", 1))
    users.ingest(sample(1, 1, "voice_sentiment", -1), sample(1, 2, "voice_sentiment", 0.5))
    users.run("summaries", "refresh")
    rows = users.sql("SELECT metric_type, value, shift, metric_count FROM session_type_summary ORDER BY metric_type")
    assert rows == [["thing", 5, -1, 3], ["voice_sentiment", -0.25, 1.5, 2]]
    columns = "SELECT mean_sentiment, sentiment_shift, metrics FROM session_summary"
    assert users.sql(columns) == [[-0.25, 1.5, {"thing": 5, "voice_sentiment": -0.25}]]
    users.run("type", "set", "voice_sentiment", "--aggregation", "max")
    assert users.sql(columns) == [[0.5, 1.5, {"thing": 5, "voice_sentiment": 0.5}]]


@pytest.mark.parametrize(
    ("aggregation", "kind", "value"),
    [("sum", "counter", 6), ("mean", "gauge", 2), ("min", "gauge", 0), ("max", "gauge", 5), ("last", "gauge", 1)],
)
def test_buckets_aggregate_as_the_type_says(users: Console, aggregation: str, kind: str, value: float) -> None:
    users.run("type", "add", "thing", "--kind", kind, "--aggregation", aggregation)
    users.ingest(sample(1, 2, "thing", 5), sample(1, 1, "thing", 0), sample(1, 3, "thing", 1))
    users.run("summaries", "refresh")
    for view in ("user_day_summary", "type_hour_summary"):
        assert users.sql(f"SELECT value, share, metric_count FROM {view}") == [[value, None, 3]]


def test_flag_has_any_and_share_and_a_score_no_sum(users: Console) -> None:
    users.ingest(*(sample(1, n, "speaker_used", int(n % 4 == 0)) for n in range(8)))
    users.ingest(*(sample(1, n, "voice_sentiment", 1) for n in range(8)))
    users.run("summaries", "refresh")
    flag, score = users.sql("SELECT * FROM user_day_summary ORDER BY metric_type")
    assert (flag[6], flag[7], score[6], score[7]) == (1, 0.25, 1, None)
    assert 8 not in score[6:8] + score[9:11]


def test_reader_role_reads_every_summary_and_refreshes_none(users: Console) -> None:
    users.ingest(sample(1, 1, "talked_time", 5))
    users.run("summaries", "refresh")
    reader = users.connect()
    reader.run("SET ROLE metrics_reader")
    for view in ("session_summary", "session_type_summary", "user_day_summary", "type_hour_summary"):
        assert reader.run(f"SELECT count(*) FROM {view} WHERE metric_count = 1") == [[1]]
    with pytest.raises(DatabaseError, match="permission denied"):
        reader.run("SELECT refresh_summaries()")
    reader.close()


def test_rows_of_a_transaction_that_was_open_during_a_refresh_are_in_the_next(users: Console) -> None:
    """Its received_at is its beginning: earlier than what the refresh has seen already."""
    slow = users.connect()
    slow.run("BEGIN")
    slow.run(ingest(sample(1, 1, "talked_time", 5)))
    users.ingest(sample(2, 1, "talked_time", 7))
    assert users.json("summaries", "refresh")["metrics"] == 1
    slow.run("COMMIT")
    slow.close()
    users.run("summaries", "refresh")
    assert differences(users) == {}


def test_refresh_touches_only_what_is_new_and_doing_it_again_changes_nothing(users: Console) -> None:
    users.ingest(*(sample(user, n * 3600, "talked_time", n, session=n) for user in range(3) for n in range(20)))
    assert users.json("summaries", "refresh") == {"metrics": 60, "sessions": 60, "user_days": 3, "type_hours": 20}
    assert users.json("summaries", "refresh") == {"metrics": 0, "sessions": 0, "user_days": 0, "type_hours": 0}
    users.ingest(sample(1, 60, "talked_time", 100, session=5))
    assert users.json("summaries", "refresh") == {"metrics": 1, "sessions": 1, "user_days": 1, "type_hours": 1}
    assert differences(users) == {}


def test_summaries_survive_a_drain(users: Console) -> None:
    users.ingest(*(sample(1, n, "talked_time", n) for n in range(10)))
    users.run("summaries", "refresh")
    users.run("partitions", "maintain", "--yes")
    users.ingest(sample(1, 86_400 * 20, "talked_time", 3))
    users.run("summaries", "refresh")
    assert differences(users) == {}


@pytest.fixture(scope="module")
def shared(postgres: Postgres) -> Console:
    console = Console(postgres.clone())
    for user in range(3):
        console.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=USER.format(user))
    return console


METRIC = st.builds(
    sample,
    user=st.integers(0, 2),
    seconds=st.integers(-4, 4).map(lambda n: n * 6 * 3600) | st.integers(-100, 100),  # to either side of midnight
    metric_type=st.sampled_from(["talked_time", "microphone_used"]),
    value=st.integers(0, 1),
    session=st.integers(1, 3),
    number=st.integers(0, 1),
)
# What can happen, in any order: metrics arrive, or in a transaction that commits later, some twice; a refresh runs.
EVENTS: st.SearchStrategy[list[tuple[str, list[Any]]]] = st.lists(
    st.tuples(st.sampled_from(["ingest", "open"]), st.lists(METRIC, min_size=1, max_size=6))
    | st.sampled_from([("refresh", []), ("commit", [])]),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_rollups_equal_a_recount_whatever_came_in_whatever_order(
    shared: Console, events: list[tuple[str, list[Any]]]
) -> None:
    connection, other = shared.connect(), shared.connect()
    open_metrics: list[Any] = []
    try:
        for name, metrics in events:
            if name == "ingest":  # never a key that the open transaction holds: it would wait for it
                held = {m["metric_id"] for m in open_metrics} | {m["session_id"] + m["user_id"] for m in open_metrics}
                free = [m for m in metrics if not held & {m["metric_id"], m["session_id"] + m["user_id"]}]
                connection.run(ingest(*free))
            elif name == "open" and not open_metrics:
                other.run("BEGIN")
                other.run(ingest(*metrics))
                open_metrics = metrics
            elif name == "refresh":
                connection.run("SELECT refresh_summaries()")
            elif name == "commit" and open_metrics:
                other.run("COMMIT")
                open_metrics = []
        if open_metrics:
            other.run("COMMIT")
        connection.run("SELECT refresh_summaries()")
        assert differences(shared) == {}
    finally:
        connection.close()
        other.close()


@pytest.fixture(scope="module")
def large(postgres: Postgres) -> Console:
    """Enough rows, over three months, that a plan that reads them all is not the cheapest."""
    console = Console(postgres.clone())
    console.sql("INSERT INTO users (user_id, name) SELECT md5(n::text)::uuid, 'Greg' FROM generate_series(1, 1000) n")
    console.sql("INSERT INTO sessions SELECT user_id, user_id, now() FROM users")
    console.sql(
        "INSERT INTO metrics"
        " SELECT md5((1 + n % 1000)::text)::uuid, timestamptz '2024-06-01Z' + n * interval '80 seconds',"
        " gen_random_uuid(), md5((1 + n % 1000)::text)::uuid, 'talked_time', 1, now() - interval '1 day'"
        " FROM generate_series(0, 99999) n"
    )
    console.run("partitions", "maintain", "--yes")
    console.run("summaries", "refresh")
    console.sql("VACUUM ANALYZE")
    return console


def plan(console: Console, sql: str) -> str:
    return "\n".join(row[0] for row in console.sql(f"EXPLAIN {sql}"))


def test_new_rows_are_found_by_block_ranges(large: Console) -> None:
    """The look for new metrics, at each refresh, reads no month as a whole."""
    connection = large.connect()
    connection.run("SET enable_seqscan = off")  # as refresh_summaries_step has it
    sql = "EXPLAIN SELECT user_id FROM metrics WHERE arrival >= 99999 AND arrival <= 100100"
    text = "\n".join(row[0] for row in connection.run(sql))
    connection.close()
    assert "Bitmap Index Scan on metrics_p2024_07_received_at_timestamp_arrival_idx" in text
    assert "Seq Scan on metrics_p2024" not in text


def test_refresh_reads_no_month_as_a_whole_whatever_statistics_say(large: Console) -> None:
    """Nor does it where autovacuum has not come yet, and there are none."""
    months = "FROM pg_class WHERE relname ~ '^metrics_p2024' AND relkind = 'r'"
    scans = "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables WHERE relname ~ '^metrics_p2024'"
    large.sql(f"DELETE FROM pg_statistic WHERE starelid IN (SELECT oid {months})")
    before = large.sql(scans)
    user_id = large.sql("SELECT user_id FROM users LIMIT 1")[0][0]
    large.ingest({"user_id": user_id, "session_id": user_id, "timestamp": "2024-07-03T00:00:00Z"})
    assert large.json("summaries", "refresh")["metrics"] == 1
    assert large.sql(scans) == before
    large.sql("ANALYZE")


def test_hour_is_read_from_its_month_alone_by_block_ranges(large: Console) -> None:
    text = plan(
        large, "SELECT sum(value) FROM metrics WHERE timestamp >= '2024-07-03Z' AND timestamp < '2024-07-03T01:00Z'"
    )
    assert "Bitmap Index Scan on metrics_p2024_07_received_at_timestamp_arrival_idx" in text
    assert "metrics_p2024_08" not in text


def test_days_of_a_user_are_read_by_the_primary_key_of_their_months(large: Console) -> None:
    large.sql("CREATE TABLE IF NOT EXISTS touched AS SELECT user_id, date '2024-07-03' AS day FROM users LIMIT 20")
    large.sql("ANALYZE touched")
    text = plan(large, """
        SELECT t.user_id, t.day, sum(value) FROM touched t JOIN metrics m ON m.user_id = t.user_id
            AND m.timestamp >= t.day AND m.timestamp < t.day + 1
        WHERE m.timestamp >= '2024-07-03Z' AND m.timestamp < '2024-07-04Z' GROUP BY 1, 2""")  # fmt: skip
    assert "Index Scan using metrics_p2024_07_pkey" in text
    assert "metrics_p2024_06" not in text


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("SELECT * FROM session_summary WHERE user_id = (SELECT user_id FROM users LIMIT 1)", "session_rollup_pkey"),
        ("SELECT * FROM session_type_summary WHERE user_id = (SELECT user_id FROM users LIMIT 1)",
         "session_rollup_pkey"),
        ("SELECT * FROM user_day_summary WHERE user_id = (SELECT user_id FROM users LIMIT 1)", "user_day_rollup_pkey"),
        ("SELECT * FROM user_day_summary WHERE day = '2024-07-03'", "user_day_rollup_day_idx"),
        ("SELECT * FROM type_hour_summary WHERE metric_type = 'talked_time'"
         " AND hour > '2024-08-30'", "type_hour_rollup_pkey"),
    ],
)  # fmt: skip
def test_summaries_are_read_by_index(large: Console, sql: str, index: str) -> None:
    assert index in plan(large, sql)


def test_status_says_never_until_the_first_refresh(console: Console) -> None:
    assert "never" in console.run("summaries", "status").stdout
    assert console.json("summaries", "status")["refreshed_at"] is None
    console.run("summaries", "refresh")
    assert "never" not in console.run("summaries", "status").stdout
    assert console.json("summaries", "status")["refreshed_at"]


def test_refresh_goes_on_with_every(users: Console) -> None:
    command = [str(BIN / "metrics-ingest"), "summaries", "refresh", "--every", "0.1"]
    process = subprocess.Popen(command, env={"DATABASE_URL": users.url}, stdout=subprocess.PIPE)
    try:
        for number in range(3):
            users.ingest(sample(1, number, "talked_time", 1, number=number))
            eventually(lambda: not differences(users))
        assert process.poll() is None
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=10)
    assert said == b""
