"""Values at the limits of a float8: they break no refresh and no view, and change no other bucket."""

import time
from typing import Any

import pytest

from metrics_ingest.admin import summaries
from support.console import Console

USER = "00000000-0000-4000-8000-000000000001"
VIEWS = ("session_type_summary", "user_day_summary", "type_hour_summary")
INFINITY = float("inf")


@pytest.fixture
def extremes(console: Console) -> Console:
    console.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=USER)
    for aggregation in ("sum", "mean"):
        console.sql(
            "INSERT INTO metric_types (metric_type, kind, aggregation) VALUES ('a_' || :a, 'gauge', :a)", a=aggregation
        )
    console.ingest(extreme("talked_time", 12))
    return console


def extreme(metric_type: str, value: float, second: int = 0) -> dict[str, Any]:
    return {"user_id": USER, "session_id": USER, "metric_type": metric_type, "value": value,
            "timestamp": f"2024-08-08T12:00:{second:02}Z"}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "total", "mean", "shift"),
    [
        ([5e-324, 0], 5e-324, 5e-324, -5e-324),  # the half is rounded to the nearest, the smallest there is
        ([5e-324, 0, 0], 5e-324, 0, -5e-324),
        ([1e308, 1e308], INFINITY, 1e308, 0),
        ([-1e308, -1e308], -INFINITY, -1e308, 0),
        ([1e308, 1e308, -1e308, -1e308], 0, 0, -INFINITY),
        ([-1e308, 1e308], 0, 0, INFINITY),
        ([5e-324, 0, 1e308, 1e308, -1e308], 1e308, 2e307, -1e308),
        ([1.7976931348623157e308, 1e200], 1.7976931348623157e308, 8.988465674311579e307, -1.7976931348623157e308),
        ([0.1, 0.2], 0.3, 0.15, 0.1),
        ([-0.0], 0, 0, 0),
    ],
)
def test_sums_and_means_are_the_nearest_float8(
    extremes: Console, values: list[float], total: float, mean: float, shift: float
) -> None:
    """Whether they are merged one by one or together."""
    for aggregation in ("sum", "mean"):
        for second, value in enumerate(values):
            extremes.ingest(extreme(f"a_{aggregation}", value, second))
            if aggregation == "mean":
                extremes.run("summaries", "refresh")
    extremes.run("summaries", "refresh")
    for view in VIEWS:
        found = extremes.sql(f"SELECT metric_type, value FROM {view} ORDER BY metric_type")
        assert found == [["a_mean", mean], ["a_sum", total], ["talked_time", 12]], view
    assert extremes.sql("SELECT shift FROM session_type_summary WHERE metric_type LIKE 'a_%'") == [[shift]] * 2
    ((talked, metrics),) = extremes.sql("SELECT talked_time_s, metrics FROM session_summary")
    assert talked == 12
    assert {name: float(value) for name, value in metrics.items()} == {
        "a_mean": mean,
        "a_sum": total,
        "talked_time": 12,
    }


def test_hour_that_is_recomputed_after_an_erasure_is_no_error(extremes: Console) -> None:
    other = extremes.user()
    for second, metric_type in enumerate(("a_sum", "a_mean")):
        extremes.ingest(extreme(metric_type, 1e308, second), extreme(metric_type, 1e308, second + 10))
        extremes.ingest(extreme(metric_type, 5e-324, second) | {"user_id": other})
    extremes.run("summaries", "refresh")
    extremes.run("user", "forget", other, "--yes")
    assert extremes.json("summaries", "refresh")["type_hours"] == 2
    hours = extremes.sql("SELECT metric_type, metric_count, value FROM type_hour_summary ORDER BY metric_type")
    assert hours == [["a_mean", 2, 1e308], ["a_sum", 2, INFINITY], ["talked_time", 1, 12]]


@pytest.mark.parametrize("sign", [1, -1])
def test_status_names_the_rows_whose_sum_is_not_finite_and_retention_goes_on(extremes: Console, sign: int) -> None:
    extremes.ingest(extreme("a_sum", sign * 1e308, 1), extreme("a_sum", sign * 1e308, 2), extreme("a_mean", 1e308, 3))
    extremes.run("summaries", "refresh")
    faulty = extremes.json("summaries", "status")["faulty"]
    assert [(row["summary"], row["metric_type"], row["rows"]) for row in faulty] == [
        ("session_summary", "a_sum", 1), ("user_day_summary", "a_sum", 1), ("type_hour_summary", "a_sum", 1)
    ]  # fmt: skip
    text = extremes.run("summaries", "status").output
    assert "type_hour_summary" in text
    assert "a_mean" not in text
    extremes.run("partitions", "maintain", "--yes")
    (metrics, _) = extremes.json("partitions", "maintain", "--keep", "12mo", "--yes")
    assert metrics["dropped"] == ["metrics_p2024_08"]
    assert extremes.sql("SELECT value FROM type_hour_summary WHERE metric_type = 'a_sum'") == [[sign * INFINITY]]


def test_retention_does_not_depend_on_a_refresh(extremes: Console) -> None:
    """It warns, and drops the month."""
    extremes.run("partitions", "maintain", "--yes")
    extremes.sql("ALTER TABLE type_hour_rollup ADD CHECK (metric_count < 0)")
    result = extremes.run("partitions", "maintain", "--keep", "12mo", "--yes")
    assert "warning: the dropped metrics may be missing in the summaries" in result.stderr
    assert extremes.sql("SELECT to_regclass('metrics_p2024_08')::text") == [[None]]


def test_last_merge_before_a_drop_holds_up_writers_for_a_short_time(
    extremes: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has locked the tables. A merge that takes longer is given up, and the month is dropped."""
    monkeypatch.setattr(summaries, "MERGE_LAST_MS", 100)
    monkeypatch.setattr(summaries, "refresh_before_drop", lambda _connection: None)
    extremes.run("partitions", "maintain", "--yes")
    extremes.sql("CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql AS 'SELECT pg_sleep(10) IS NOT NULL'")
    extremes.sql("ALTER TABLE type_hour_rollup ADD CHECK (slow())")
    began = time.monotonic()
    result = extremes.run("partitions", "maintain", "--keep", "12mo", "--yes")
    assert time.monotonic() - began < 8
    assert "warning: the dropped metrics may be missing in the summaries" in result.stderr
    assert extremes.sql("SELECT to_regclass('metrics_p2024_08')::text") == [[None]]
