"""`metrics-ingest user`: show what is stored about a user, and erase it."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import requests
from click.testing import CliRunner

from metrics_ingest.admin import user as erasure
from metrics_ingest.admin.cli import main
from metrics_ingest.admin.database import PARTITIONS_LOCK, advisory_lock
from support.console import Console
from support.metrics import current
from support.mortal import Mortal
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
    monkeypatch.setattr(erasure, "STEP", 7)
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


def test_nothing_is_changed_or_locked_while_it_asks(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = filled("2024-08-08", 3)
    locks: list[Any] = []

    def confirm(*_arguments: Any, **_options: Any) -> None:
        locks.extend(console.sql("SELECT locktype, mode FROM pg_locks WHERE pid <> pg_backend_pid()"))
        assert console.ingest(current(user)) is None

    monkeypatch.setattr("click.confirm", confirm)
    assert console.json("user", "forget", user)["metrics"] == 4
    assert locks == []


def test_others_wait_for_a_step_of_an_erasure_at_most(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh and maintenance can run between two steps: no lock outlives a step."""
    user = filled("2024-08-08", 30)
    original = erasure._erase_step
    locks: list[Any] = []

    def erase_step(*arguments: Any) -> int:
        locks.append(console.sql("SELECT locktype, mode FROM pg_locks WHERE pid <> pg_backend_pid()"))
        return original(*arguments)

    monkeypatch.setattr(erasure, "STEP", 10)
    monkeypatch.setattr(erasure, "_erase_step", erase_step)
    assert console.json("user", "forget", user, "--yes")["metrics"] == 30
    assert len(locks) > 5
    assert not any(locks)


def test_unknown_user_is_no_success(console: Console) -> None:
    for command in ("show", "forget"):
        result = console.run("user", command, "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", exit_code=1)
        assert "there is no user b2a7465b" in result.output
    console.run("user", "show", "Greg", exit_code=2)


def test_metrics_that_come_during_the_erasure_go_too(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = filled("2024-08-08", 5)
    original = erasure._run_step
    late = 2

    def run_step(connection: Any, sql: str, values: Any) -> int:
        nonlocal late
        if late and "DELETE FROM sessions" in sql:  # as a transaction that began before the erasure stores them
            late -= 1
            console.sql("INSERT INTO metrics SELECT user_id, now(), gen_random_uuid(), session_id, 'talked_time', 1"
                        " FROM sessions WHERE user_id = :u", u=user)  # fmt: skip
        return original(connection, sql, values)

    monkeypatch.setattr(erasure, "_run_step", run_step)
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


def forgotten(console: Console, user: str) -> bool:
    """Whether nothing at all is stored that names the user."""
    hexadecimal = user.replace("-", "")
    kept = console.sql("SELECT payload, detail, named_ids::text FROM rejected_metrics")
    text = " ".join(payload.decode("latin-1") + detail + ids for payload, detail, ids in kept).lower().replace("-", "")
    rows = [
        console.sql(f"SELECT count(*) FROM {table} WHERE user_id = :u", u=user) for table in (*TABLES, "user_erasures")
    ]
    return hexadecimal not in text and rows == [[[0]]] * len(rows)


def test_clients_that_keep_sending_do_not_keep_an_erasure_from_ending(
    console: Console, filled: Fill, serve: Callable[..., Server]
) -> None:
    """From the tombstone on, their metrics are refused, and what was refused is not kept: it names the user."""
    user, other = filled("2024-08-08", 2000), console.user()
    batch = serve("ingest_batch", console.url)
    stop = Event()

    def send() -> list[Any]:
        replies = []
        while not stop.is_set():
            items = [current(user), current(other), *(current(user) for _ in range(50))]
            replies.append(requests.post(batch.url, json=items, timeout=30).json())
        return replies

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(send) for _ in range(6)]
        eventually(lambda: console.sql("SELECT count(*) > 3000 FROM metrics")[0][0])
        try:
            began = time.monotonic()
            console.run("user", "forget", user, "--yes")
            took = time.monotonic() - began
            eventually(lambda: requests.post(batch.url, json=[current(user)], timeout=30).status_code == 422)
            assert forgotten(console, user)
        finally:
            stop.set()
        replies = [reply for client in clients for reply in client.result()]
    assert took < 20
    assert all({error["code"] for error in reply["errors"]} <= {"unknown_user"} for reply in replies)
    stored = sum(reply["stored"] for reply in replies)
    assert console.sql("SELECT count(*) FROM metrics WHERE user_id = :u", u=other) == [[len(replies)]]
    assert stored > len(replies)  # some before the tombstone
    assert forgotten(console, user)
    console.run("summaries", "refresh")
    assert console.sql("SELECT sum(metric_count) FROM type_hour_rollup") == [[len(replies)]]


ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "0123456789abcdef-"})


@pytest.mark.parametrize(
    "body",
    [
        lambda user: json.dumps(current(user, value=-1)).replace("-", "\\u002d"),
        lambda user: json.dumps(current("@", value=-1)).replace("@", user.translate(ESCAPES)),
        lambda user: json.dumps(current(user, value=-1) | {"user_id": f"urn:uuid:{user.upper()}"}),
        lambda user: json.dumps({"note": "x" * 8150, "user_id": user}),  # the limit of 8 KiB cuts the id in two
        lambda user: json.dumps(current("no id", session_id=user)),
        lambda user: json.dumps(current(user))[:-1],  # no JSON
        lambda user: json.dumps(current(str(uuid4()), metric_type=user)),
    ],
)  # fmt: skip
def test_rejected_metrics_that_name_the_user_are_found_however_they_do(
    console: Console, serve: Callable[..., Server], body: Callable[[str], str]
) -> None:
    user = console.user()
    ingest = serve("ingest", console.url)
    assert 400 <= requests.post(ingest.url, data=body(user), timeout=10).status_code < 500
    assert console.sql("SELECT count(*) FROM rejected_metrics WHERE CAST(:u AS uuid) = ANY (named_ids)", u=user) == [
        [1]
    ]
    assert console.json("user", "show", user)["rejected_metrics"] == 1
    assert console.json("user", "forget", user, "--yes")["rejected_metrics"] == 1
    requests.post(ingest.url, data=body(user), timeout=10)  # again, after the erasure
    assert console.sql("SELECT count(*) FROM rejected_metrics") == [[0]]


def test_rejected_metric_of_a_transaction_that_began_before_the_erasure_goes_too(console: Console) -> None:
    """It does not see the tombstone, and the erasure does not see the row until it commits."""
    user = console.user()
    kept = json.dumps(
        [
            {
                "route": "ingest",
                "codes": ["value_out_of_range"],
                "detail": "x",
                "payload": "eA==",
                "payload_bytes": 1,
                "named_ids": [user],
            }
        ]
    )
    other = console.connect()
    other.run("BEGIN")
    other.run("SELECT keep_rejected(CAST(:kept AS json))", kept=kept)
    with ThreadPoolExecutor(1) as pool:
        erasure_done = pool.submit(console.run, "user", "forget", user, "--yes")
        eventually(lambda: console.sql("SELECT FROM users WHERE user_id = :u", u=user) == [])
        assert not erasure_done.done()
        other.run("COMMIT")
        erasure_done.result(30)
    other.close()
    assert console.sql("SELECT count(*) FROM rejected_metrics") == [[0]]


@pytest.mark.parametrize("step", range(1, 10))
def test_erasure_that_was_interrupted_continues(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also when the user's own row was erased, but not the rejected metrics."""
    user = filled("2024-08-08", 5)
    console.run("summaries", "refresh")
    rejected(console, user.encode())
    original, calls = erasure._erase_step, iter(range(1, 100))

    def erase_step(*arguments: Any) -> int:
        if next(calls) == step:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(erasure, "_erase_step", erase_step)
    result = CliRunner().invoke(main, ("user", "forget", user, "--yes"), env={"DATABASE_URL": console.url})
    assert result.exit_code == 1
    assert console.ingest(current(user))[0]["outcome"] == "unknown_user"
    monkeypatch.setattr(erasure, "_erase_step", original)
    console.run("user", "forget", user, "--yes")
    assert forgotten(console, user)
    assert "there is no user" in console.run("user", "forget", user, "--yes", exit_code=1).output


def test_user_can_be_registered_again_after_an_erasure_and_not_during_it(
    console: Console, serve: Callable[..., Server]
) -> None:
    user = console.user()
    users = serve("users", console.url)
    for statement in erasure.BEGIN_ERASURE:
        console.sql(statement, user_id=user)
    reply = requests.post(users.url, json={"user_id": user, "name": "Greg"}, timeout=10)
    assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
    console.run("user", "forget", user, "--yes")
    assert requests.post(users.url, json={"user_id": user, "name": "Greg"}, timeout=10).status_code == 201
    assert console.ingest(current(user)) is None
    assert console.sql("SELECT count(*) FROM forgotten_users") == [[0]]


def test_erasure_does_not_depend_on_statistics(mortal: Mortal) -> None:
    """20,000 sessions with a metric each, and no statistics, as before autovacuum has come: 21 s once.

    On a server of its own: erased metrics are looked at again and again while a transaction of others is open.
    """
    console = Console(mortal.clone())
    user = console.user()
    console.sql("INSERT INTO sessions SELECT :u, gen_random_uuid(), now() FROM generate_series(1, 20000)", u=user)
    console.sql(
        "INSERT INTO metrics"
        " SELECT user_id, now() - interval '1 day', gen_random_uuid(), session_id, 'talked_time', 1 FROM sessions"
    )
    console.run("summaries", "refresh")
    tables = "FROM pg_class WHERE relname ~ '^metrics|sessions|rollup'"
    console.sql(f"DELETE FROM pg_statistic WHERE starelid IN (SELECT oid {tables})")
    console.sql(f"UPDATE pg_class SET reltuples = 0 WHERE oid IN (SELECT oid {tables})")
    began = time.monotonic()
    assert console.json("user", "forget", user, "--yes")["sessions"] == 20_000
    assert time.monotonic() - began < 8
