"""`metrics-ingest user`: show what is stored about a user, and erase it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from metrics_ingest.admin import user as erasure
from metrics_ingest.admin.database import PARTITIONS_LOCK, advisory_lock
from support.console import Console
from support.processes import Server, eventually

Fill = Callable[[str, int], str]
TABLES = ("users", "sessions", "metrics", "session_rollup", "user_day_rollup")


def rejected(console: Console, payload: bytes) -> None:
    console.sql(
        "INSERT INTO rejected_metrics (route, codes, payload, payload_bytes) VALUES ('ingest', '{}', :p, 0)", p=payload
    )


def test_forgotten_user_leaves_nothing_and_others_lose_nothing(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "ERASE_METRICS", erasure.ERASE_METRICS.replace("10000", "7"))
    gone, kept = filled("2024-08-08", 30), filled("2024-08-08", 20)
    console.run("summaries", "refresh")
    for payload in (gone.upper(), gone.replace("-", ""), f"urn:uuid:{{{gone}}} \xff", kept):
        rejected(console, payload.encode("latin-1"))
    held = console.json("user", "show", gone)
    assert (held["name"], held["metrics"], held["rejected_metrics"]) == ("Greg", 30, 3)
    assert held["metric_types"][0]["metrics"] == 30
    assert console.json("user", "forget", gone, "--yes") == {
        "metrics": 30, "rejected_metrics": 3, "session_summaries": 1, "user_day_summaries": 1,
        "sessions": 1, "users": 1,
    }  # fmt: skip
    for table in TABLES:
        assert console.sql(f"SELECT user_id::text FROM {table} GROUP BY 1") == [[kept]]
    assert console.sql("SELECT count(*) FROM rejected_metrics") == [[1]]
    assert console.sql("SELECT sum(metric_count) FROM type_hour_rollup") == [[50]]
    console.run("summaries", "refresh")
    assert console.sql("SELECT sum(metric_count) FROM type_hour_rollup") == [[20]]  # counted again, without them
    assert console.json("user", "show", kept)["metrics"] == 20


def test_user_is_forgotten_only_when_confirmed(console: Console, filled: Fill) -> None:
    user = filled("2024-08-08", 3)
    refused = console.run("user", "forget", user, exit_code=1, input="n\n")
    assert "Erase Greg with 3 metrics, for good?" in refused.stderr
    assert console.json("user", "show", user)["metrics"] == 3


def test_unknown_user_is_no_success(console: Console) -> None:
    for command in ("show", "forget"):
        result = console.run("user", command, "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", exit_code=1)
        assert "there is no user b2a7465b" in result.output
    console.run("user", "show", "Greg", exit_code=2)


def test_metrics_that_come_during_the_erasure_go_too(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = filled("2024-08-08", 5)
    original = erasure._erase_user
    late = [{"user_id": user, "session_id": user, "timestamp": "2024-08-08T12:00:00Z"}] * 2

    def erase_user(*arguments: Any) -> Any:
        if late:
            assert console.ingest(late.pop()) is None
        return original(*arguments)

    monkeypatch.setattr(erasure, "_erase_user", erase_user)
    assert console.json("user", "forget", user, "--yes")["metrics"] == 7
    assert console.sql("SELECT count(*) FROM metrics") == [[0]]


def test_erasure_waits_for_a_drain_which_would_bring_the_rows_back(console: Console, filled: Fill) -> None:
    user = filled("2019-12-01", 5)
    drain = console.connect()
    advisory_lock(drain, PARTITIONS_LOCK)
    with ThreadPoolExecutor(1) as pool:
        forgotten = pool.submit(console.json, "user", "forget", user, "--yes")
        eventually(console.waits)
        assert console.sql("SELECT count(*) FROM metrics") == [[5]]
        drain.close()
        assert forgotten.result()["metrics"] == 5


def test_metric_that_waits_for_an_erasure_is_refused_and_no_defect(
    console: Console, serve: Callable[..., Server]
) -> None:
    user = console.user()
    function = serve("ingest", console.url)
    eraser = console.connect()
    eraser.run("BEGIN")
    eraser.run("DELETE FROM users WHERE user_id = :u", u=user)
    metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T12:00:00Z"}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(requests.post, f"{function.url}/ingest/", json=metric, timeout=10)
        eventually(console.waits)
        eraser.run("COMMIT")
        assert answer.result().json()["code"] == "unknown_user"
    eraser.close()


def test_table_for_people_has_the_numbers_of_the_json(console: Console, filled: Fill) -> None:
    user = filled("2024-08-08", 1200)
    text = console.run("user", "show", user).output
    shown = console.json("user", "show", user)
    assert (shown["metrics"], shown["metric_types"][0]["metrics"]) == (1200, 1200)
    assert text.count("1,200") == 2
    assert "talked_time" in text
