"""Calendars and clocks: an instant is stored unchanged in any time zone of the function and of the database."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid3

import pytest

from faults.load import post_all
from metrics_ingest.settings import read_database
from support.metrics import metric, register
from support.processes import Server, query

NEXT_MONTH = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(
    day=1, hour=0, minute=0, second=0, microsecond=0
)
INSTANTS = {  # what is sent, the instant, and the UTC day whose implicit session it is in
    "last-second-of-a-month": ("2024-01-31T23:59:59.999999Z", "2024-01-31T23:59:59.999999", "2024-01-31"),
    "first-second-of-a-month": ("2024-02-01T00:00:00Z", "2024-02-01T00:00:00", "2024-02-01"),
    "month-end-elsewhere": ("2024-01-31T20:00:00-05:00", "2024-02-01T01:00:00", "2024-02-01"),
    "leap-day": ("2024-02-29T23:30:00+00:00", "2024-02-29T23:30:00", "2024-02-29"),
    "leap-day-elsewhere": ("2024-03-01T01:00:00+02:00", "2024-02-29T23:00:00", "2024-02-29"),
    "hour-that-does-not-exist": ("2024-03-10T02:30:00-05:00", "2024-03-10T07:30:00", "2024-03-10"),
    "hour-that-comes-twice-first": ("2024-11-03T01:30:00-04:00", "2024-11-03T05:30:00", "2024-11-03"),
    "hour-that-comes-twice-second": ("2024-11-03T01:30:00-05:00", "2024-11-03T06:30:00", "2024-11-03"),
    "new-year": ("2023-12-31T23:59:59-00:00", "2023-12-31T23:59:59", "2023-12-31"),
    "earliest": ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00", "2000-01-01"),
}


@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
def test_instants_are_kept_whatever_the_zone(database_url: str, serve: Callable[..., Server], zone: str) -> None:
    name = read_database({"DATABASE_URL": database_url}).database
    query(database_url, f"ALTER DATABASE {name} SET timezone = '{zone}'")
    server = serve("ingest", database_url, TZ=zone)
    user_id = register(database_url)
    bodies = [metric(user_id, timestamp=sent) for sent, _, _ in INSTANTS.values()]
    assert [answer.status for answer in post_all(server.port, "/ingest/", bodies)] == [200] * len(bodies)
    rows = query(database_url, "SELECT metric_id, timestamp, session_id, tableoid::regclass::text FROM metrics"
                 " WHERE user_id = :u", u=user_id)  # fmt: skip
    found = {str(metric_id): rest for metric_id, *rest in rows}
    for body, (_, instant, day) in zip(bodies, INSTANTS.values(), strict=True):
        timestamp, session_id, partition = found[body["metric_id"]]
        assert timestamp == datetime.fromisoformat(instant).replace(tzinfo=UTC)
        assert session_id == uuid3(UUID(user_id), date.fromisoformat(day).isoformat())
        assert partition == "metrics_default"


def test_month_boundaries_are_those_of_utc(database_url: str, serve: Callable[..., Server]) -> None:
    """The last microsecond of a month and the first of the next are in the partitions of their months."""
    name = read_database({"DATABASE_URL": database_url}).database
    query(database_url, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    server = serve("ingest", database_url, TZ="America/Los_Angeles", MAX_FUTURE_SKEW_S=str(70 * 86_400))
    user_id = register(database_url)
    instants = [NEXT_MONTH - timedelta(microseconds=1), NEXT_MONTH]
    bodies = [metric(user_id, timestamp=instant.isoformat()) for instant in instants]
    assert [answer.status for answer in post_all(server.port, "/ingest/", bodies)] == [200, 200]
    rows = query(database_url, "SELECT timestamp, tableoid::regclass::text FROM metrics WHERE user_id = :u"
                 " ORDER BY timestamp", u=user_id)  # fmt: skip
    assert [list(row) for row in rows] == [[instant, f"metrics_p{instant:%Y_%m}"] for instant in instants]
