"""Where a summary serves, the metrics are not read: the queries' plans on a database in which that matters."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from metrics_ingest.dashboard import overview, series, users
from metrics_ingest.dashboard.parameters import DAY, HOUR, Range
from metrics_ingest.dashboard.reader import Row, Session
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.processes import Postgres, query

START = datetime(2024, 6, 1, tzinfo=UTC)
FILL = (
    "CREATE TABLE metrics_p2024_06 PARTITION OF metrics FOR VALUES FROM ('2024-06-01Z') TO ('2024-07-01Z')",
    "CREATE TABLE metrics_p2024_07 PARTITION OF metrics FOR VALUES FROM ('2024-07-01Z') TO ('2024-08-01Z')",
    "INSERT INTO users (user_id, name) SELECT md5(n::text)::uuid, 'Greg' FROM generate_series(1, 200) n",
    "INSERT INTO sessions SELECT md5((1 + n % 200)::text)::uuid, md5('s' || n)::uuid,"
    " timestamptz '2024-06-01Z' + n * interval '44 minutes' FROM generate_series(0, 1900) n",
    "INSERT INTO metrics SELECT user_id, start_time + n * interval '9 seconds', gen_random_uuid(), session_id,"
    " 'talked_time', 1, start_time + n * interval '9 seconds' FROM sessions, generate_series(1, 70) n",
    "SELECT refresh_summaries()",
    "VACUUM ANALYZE",
)


class Watching(Session):
    """A session that also explains each query."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection, {})
        self.plans: list[str] = []

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        """Explain the query, then run it."""
        explained = super().rows(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}", **parameters)
        self.plans.append("\n".join(str(row["QUERY PLAN"]) for row in explained))
        return super().rows(sql, **parameters)

    def read(self) -> list[str]:
        """The lines of all plans that read something and were run."""
        lines = [line for plan in self.plans for line in plan.splitlines()]
        return [line for line in lines if " on " in line and "never executed" not in line]


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    made = postgres.clone()
    for sql in FILL:
        query(made, sql)
    return made


@pytest.fixture
def session(url: str) -> Iterator[Watching]:
    connection = connect(read_database({"DATABASE_URL": url}), 30)
    connection.run("BEGIN; SET LOCAL timezone = 'UTC'")
    yield Watching(connection)
    connection.close()


RANGES = {
    "days": Range(START, START + 40 * DAY),
    "hours": Range(START + 5 * HOUR, START + 30 * DAY + 7 * HOUR),
    "one day": Range(START + 9 * HOUR, START + DAY + 9 * HOUR),
}
FROM_SUMMARIES: dict[str, Callable[[Session, Range], Any]] = {
    "types": overview.types_in,
    "users": overview.users_in,
    "series by hour": lambda session, wanted: series.series(session, "talked_time", None, "hour", wanted),
    "series by day": lambda session, wanted: series.series(session, "talked_time", None, "day", wanted),
    "activity by day": lambda session, wanted: series.activity(session, "day", wanted.outward(DAY)),
}


@pytest.mark.parametrize("wanted", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("name", FROM_SUMMARIES)
def test_figure_of_whole_hours_is_read_from_a_summary(session: Watching, name: str, wanted: Range) -> None:
    FROM_SUMMARIES[name](session, wanted)
    assert any("rollup" in line for line in session.read())
    assert not [line for line in session.read() if "metrics_p" in line or "metrics_default" in line]


def test_users_are_counted_by_the_primary_key_alone(session: Watching) -> None:
    overview.users_in(session, RANGES["days"])
    assert any("Index Only Scan using user_day_rollup_pkey" in line for line in session.read())
    assert not any("Seq Scan on user_day_rollup" in line for line in session.read())


def test_users_list_reads_no_metrics(session: Watching) -> None:
    parameters = {"first_day": START, "end_day": START + 9 * DAY, "metric_type": None, "search": None, "limit": 9,
                  "figure": "name", "sign": 1, "after_number": None, "after_text": None, "after_id": None}  # fmt: skip
    session.rows(users.ASCENDING, aggregation=None, **parameters)
    assert not [line for line in session.read() if "metrics_p" in line]


def test_parts_of_hours_are_read_by_block_ranges_of_their_months(session: Watching) -> None:
    wanted = Range(START + timedelta(minutes=30), START + 9 * DAY + timedelta(minutes=20))
    overview.types_in(session, wanted)
    assert not [line for line in session.read() if "metrics_p2024_07" in line]
    assert not any("Seq Scan on metrics_p2024_06" in line for line in session.read())


def test_delay_of_many_metrics_is_a_sample(session: Watching) -> None:
    found = overview.delay_in(session, RANGES["days"], 133_000)
    assert any("Sample Scan on metrics_p2024_06" in line for line in session.read())
    assert 0 < found["sample"] < 20_000
    assert found["p50"] == found["p99"] == 0


def test_last_metric_is_found_without_reading_all(session: Watching) -> None:
    query_plan = "\n".join(
        str(row["QUERY PLAN"]) for row in Session.rows(session, f"EXPLAIN (COSTS OFF) {overview.FRESHNESS}")
    )
    assert "received_at >= (now() - '00:03:00'::interval)" in query_plan


def test_sessions_are_counted_by_block_ranges(url: str) -> None:
    """The index exists and can serve; at this scale reading the whole table is cheaper."""
    connection = connect(read_database({"DATABASE_URL": url}), 30)
    connection.run("BEGIN; SET LOCAL enable_seqscan = off")
    watching = Watching(connection)
    watching.row(overview.SESSIONS, start=START, end=START + DAY)
    assert any("Bitmap Index Scan on sessions_start_time_brin" in line for line in watching.read())
    connection.close()


def test_users_are_remembered_until_the_summaries_change(url: str) -> None:
    connection = connect(read_database({"DATABASE_URL": url}), 30)
    watching = Watching(connection)
    first = overview.overview(watching, RANGES["days"])["users"]
    watching.plans.clear()
    assert overview.overview(watching, RANGES["days"])["users"] == first
    assert not any("user_day_rollup" in line for line in watching.read())
    watching.end()
    connection.run("DELETE FROM user_day_rollup WHERE user_id = (SELECT min(user_id::text)::uuid FROM users)")
    connection.run("UPDATE summary_state SET refreshed_at = clock_timestamp()")
    assert overview.overview(watching, RANGES["days"])["users"] == first - 1
    connection.close()
