"""Rejected metrics are kept, within limits, and can be stored once their error is fixed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import requests

from metrics_ingest.storage import quarantine as rejected
from support.console import Console
from support.processes import ROOT, Server, Stack

KEPT = (
    "SELECT route, key_name, codes, convert_from(payload, 'UTF8'), payload_bytes, metric_id::text FROM rejected_metrics"
)


@pytest.fixture
def stack_console(stack: Stack) -> Console:
    """The command on the database of the running functions, with nothing rejected yet."""
    console = Console(stack.database_url)
    console.sql("TRUNCATE rejected_metrics")
    return console


def test_refused_metric_is_kept_as_it_was_sent(stack: Stack, stack_console: Console, metric: dict[str, Any]) -> None:
    body = json.dumps(metric | {"value": 1e9, "metric_id": "", "timestamp": "x"})
    requests.post(f"{stack.ingest.url}/ingest/", data=body, timeout=10)
    (row,) = stack_console.sql(KEPT)
    assert set(row[2]) == {"invalid_timestamp", "invalid_uuid"}
    assert (row[0], row[3], row[4]) == ("ingest", body, len(body))


def test_of_a_batch_only_what_was_rejected_is_kept(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    bad = [metric | {"metric_id": str(uuid4()), "value": 1e9}, {"user_id": "x"}, "nonsense"]
    batch = [metric, bad[0], bad[1], metric | {"metric_id": str(uuid4())}, bad[2]]
    for body in (json.dumps(batch), json.dumps({"metrics": batch})):
        answer = requests.post(f"{stack.ingest_batch.url}/ingest_batch/", data=body, timeout=10)
        assert answer.json()["rejected"] == 3
    lines = "\n\n".join(json.dumps(item) for item in batch) + '\n{"broken'
    requests.post(
        f"{stack.ingest_batch.url}/ingest_batch/",
        data=lines,
        headers={"Content-Type": "application/x-ndjson"},
        timeout=10,
    )
    payloads = [row[3] for row in stack_console.sql(KEPT)]
    assert sorted(payloads) == sorted(
        [json.dumps(item, separators=(",", ":")) for item in bad] * 2
        + [json.dumps(item) for item in bad]
        + ['{"broken']
    )


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"\x00", [b"\x00", b"\x00"]),
        (b'{"user_id": "\xff\xfe"}', [b'{"user_id": "\xff\xfe"}'] * 2),
        (b"\x1e\x8b no gzip", [b"\x1e\x8b no gzip"] * 2),
        (b"", [b"", b""]),
        (b'["\\u0000"]', [b'["\\u0000"]', b'"\\u0000"']),  # a body that is no metric, and an item of a batch
    ],
)
def test_any_bytes_are_kept_and_listed(stack: Stack, stack_console: Console, body: bytes, kept: list[bytes]) -> None:
    for server, path in ((stack.ingest, "ingest"), (stack.ingest_batch, "ingest_batch")):
        assert 400 <= requests.post(f"{server.url}/{path}/", data=body, timeout=10).status_code < 500
    assert stack_console.sql("SELECT payload FROM rejected_metrics ORDER BY route") == [[payload] for payload in kept]
    assert len(stack_console.json("rejected", "list")) == 2
    assert len(stack_console.run("rejected", "list").output.splitlines()) == 3
    assert stack_console.json("rejected", "replay")["stored"] == 0


def test_payload_is_cut_and_a_cut_one_is_not_replayed(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    body = json.dumps(metric | {"note": "x" * 10_000})
    requests.post(f"{stack.ingest.url}/ingest/", data=body, timeout=10)
    assert stack_console.sql("SELECT octet_length(payload), payload_bytes FROM rejected_metrics") == [[8192, len(body)]]
    assert stack_console.json("rejected", "replay")["payload_too_large"] == 1


def test_replay_stores_once_what_is_valid_now(stack: Stack, stack_console: Console, metric: dict[str, Any]) -> None:
    """A type and a user are added after the rejection; what is still invalid stays, with its error code."""
    name, user = f"t_{uuid4().hex}", str(uuid4())
    no_type = {key: value for key, value in metric.items() if key != "metric_id"} | {"metric_type": name}
    answer = stack.send_batch(
        [no_type, metric | {"user_id": user}, metric | {"value": -5}], **{"Idempotency-Key": str(uuid4())}
    )
    reported = answer.json()["errors"][0]["metric_id"]
    assert {row["code"] for row in stack_console.json("rejected", "summary") if row["kept"]} == {
        "unknown_metric_type", "unknown_user", "value_out_of_range"}  # fmt: skip
    assert stack_console.json("rejected", "replay") == {
        "stored": 0, "duplicates": 0, "still_rejected": 3, "unknown_metric_type": 1, "unknown_user": 1,
        "value_out_of_range": 1,
    }  # fmt: skip
    stack_console.run("type", "add", name, "--kind", "counter")
    requests.post(f"{stack.users.url}/users/", json={"user_id": user, "name": "Late"}, timeout=10)
    assert stack_console.json("rejected", "replay") == {
        "stored": 2, "duplicates": 0, "still_rejected": 1, "value_out_of_range": 1}  # fmt: skip
    assert [str(row[2]) for row in stack.stored(metric["user_id"])] == [reported]  # the identity in the reply
    assert len(stack.stored(user)) == 1
    assert stack_console.json("rejected", "replay")["stored"] == 0
    (left,) = stack_console.json("rejected", "list")
    assert left["codes"] == ["value_out_of_range"]


def test_replay_of_what_was_sent_again_meanwhile_is_a_duplicate(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    name = f"t_{uuid4().hex}"
    stack.send(metric | {"metric_type": name})
    stack.send(metric | {"metric_type": name})
    stack_console.run("type", "add", name, "--kind", "counter")
    assert stack.send(metric | {"metric_type": name}).status_code == 200
    assert stack_console.json("rejected", "replay") == {"stored": 0, "duplicates": 2, "still_rejected": 0}
    assert len(stack.stored(metric["user_id"])) == 1


def test_replay_interrupted_or_run_twice_at_once_stores_nothing_twice(console: Console) -> None:
    user = console.user()
    metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T00:00:00Z"}
    console.sql(
        "INSERT INTO rejected_metrics (route, codes, payload, payload_bytes)"
        " SELECT 'ingest', '{unknown_user}', convert_to(:p, 'UTF8'), length(:p) FROM generate_series(1, 20)",
        p=json.dumps(metric),
    )  # fmt: skip
    other = console.connect()
    other.run("BEGIN")
    other.run("SELECT FROM rejected_metrics LIMIT 5 FOR UPDATE")  # as another replay does
    ((name,),) = console.sql("SELECT current_database()")
    console.sql(f"ALTER DATABASE {name} SET lock_timeout = '5s'")  # a replay that waits for the other fails here
    assert console.json("rejected", "replay", "--force")["stored"] == 15
    other.run("ROLLBACK")
    other.close()
    assert console.json("rejected", "replay", "--force")["stored"] == 5
    assert console.sql("SELECT count(*), count(DISTINCT metric_id) FROM metrics") == [[20, 20]]


def test_lone_object_that_a_batch_refused_is_not_stored_beside_the_one_that_was_sent_right(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    """The sender gave it no identity, and so sent another metric when it sent it right."""
    anonymous = {name: value for name, value in metric.items() if name != "metric_id"}
    assert stack.send_batch(anonymous).json()["code"] == "missing_field"
    assert stack.send_batch([anonymous]).json()["stored"] == 1
    assert stack_console.json("rejected", "replay") == {
        "stored": 0, "duplicates": 0, "still_rejected": 1, "needs_force": 1}  # fmt: skip
    assert len(stack.stored(metric["user_id"])) == 1
    assert stack_console.json("rejected", "replay", "--force")["stored"] == 1
    assert len(stack.stored(metric["user_id"])) == 2


def test_lone_object_with_a_metric_id_is_replayed_and_stored_once(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    assert stack.send_batch(metric).json()["code"] == "missing_field"
    assert stack.send_batch([metric]).json()["stored"] == 1
    assert stack_console.json("rejected", "replay") == {"stored": 0, "duplicates": 1, "still_rejected": 0}
    assert len(stack.stored(metric["user_id"])) == 1


@pytest.mark.parametrize("form", ["one", "array", "lines"])
@pytest.mark.parametrize("keyed", [False, True], ids=["without ids", "with a key"])
def test_metric_of_an_unknown_user_who_registers_and_sends_it_again_is_stored_once(
    stack: Stack, stack_console: Console, form: str, keyed: bool
) -> None:
    user = str(uuid4())
    metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T00:00:00Z"}
    headers = {"Idempotency-Key": str(uuid4())} if keyed else {}
    server, body = {
        "one": (stack.ingest, json.dumps(metric)),
        "array": (stack.ingest_batch, json.dumps([metric])),
        "lines": (stack.ingest_batch, json.dumps(metric)),
    }[form]
    if form == "lines":
        headers["Content-Type"] = "application/x-ndjson"
    for answered in (422, 200):
        assert requests.post(server.url, data=body, headers=headers, timeout=10).status_code == answered
        requests.post(stack.users.url, json={"user_id": user, "name": "Late"}, timeout=10)
    assert [row["keyed"] for row in stack_console.json("rejected", "list")] == [keyed]
    replayed = stack_console.json("rejected", "replay")
    assert (replayed["duplicates"], replayed.get("needs_force", 0)) == ((1, 0) if keyed else (0, 1))
    assert len(stack.stored(user)) == 1


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_fault_of_a_line_is_kept_with_that_line(
    stack: Stack, stack_console: Console, metric: dict[str, Any], separator: str
) -> None:
    """Only a line feed ends a line: other characters that some programs take for line ends are part of it."""
    valid = [metric | {"metric_id": str(uuid4()), "value": value} for value in (1, 2, 3)]
    refused = metric | {"metric_id": str(uuid4()), "value": 1e9}
    first, second, third, fourth = (json.dumps(one) for one in (*valid, refused))
    lines = [separator, first, f"{second}{separator}", fourth, f"{separator}{third}"]
    answer = requests.post(
        stack.ingest_batch.url, data="\n".join(lines).encode(), timeout=10,
        headers={"Content-Type": "application/x-ndjson"},
    ).json()  # fmt: skip
    assert (answer["received"], answer["stored"]) == (5, 1)
    kept = {
        row[0]: row[1] for row in stack_console.sql("SELECT convert_from(payload, 'UTF8'), codes FROM rejected_metrics")
    }
    assert kept == {lines[at]: ["value_out_of_range" if at == 3 else "malformed_json"] for at in (0, 2, 3, 4)}
    assert stack_console.json("rejected", "replay")["stored"] == 0
    assert len(stack.stored(metric["user_id"])) == 1


def test_metric_with_a_field_sent_twice_is_kept_with_both(
    stack: Stack, stack_console: Console, metric: dict[str, Any]
) -> None:
    """Else a replay would store the last one."""
    twice = json.dumps(metric, separators=(",", ":")).replace("{", '{"value":"a, b","value":null,', 1)
    for body, headers in ((f"[{twice}]", {}), (twice, {"Content-Type": "application/x-ndjson"})):
        requests.post(stack.ingest_batch.url, data=body, headers=headers, timeout=10)
    assert [row[3] for row in stack_console.sql(KEPT)] == [twice, twice]
    assert stack_console.json("rejected", "replay") == {
        "stored": 0, "duplicates": 0, "still_rejected": 2, "invalid_field": 2}  # fmt: skip


def test_selection_narrows_list_and_replay(console: Console) -> None:
    for code, route, key in (("a", "ingest", "app"), ("b", "ingest", "web"), ("b", "ingest_batch", None)):
        console.sql("INSERT INTO rejected_metrics (route, key_name, codes, payload, payload_bytes)"
                    " VALUES (:r, :k, ARRAY[CAST(:c AS varchar)], '', 0)", r=route, k=key, c=code)  # fmt: skip
    assert [row["route"] for row in console.json("rejected", "list", "--code", "b")] == ["ingest", "ingest_batch"]
    assert [row["codes"] for row in console.json("rejected", "list", "--key", "app")] == [["a"]]
    assert console.json("rejected", "list", "--since", "2999-01-01") == []
    assert [row["rejected"] for row in console.json("rejected", "summary", "--route", "ingest")] == [1, 1]


def test_refusals_that_no_known_caller_sent_and_users_are_not_kept(
    console: Console, serve: Callable[..., Server]
) -> None:
    import hashlib

    function = serve(
        "ingest", console.url, API_KEYS=f"app:{hashlib.sha256(b'secret').hexdigest()}", ALLOW_ANONYMOUS="false"
    )
    for key in ("wrong", "secret"):
        requests.post(f"{function.url}/ingest/", data="{}", headers={"X-API-Key": key}, timeout=10)
    assert console.sql("SELECT key_name FROM rejected_metrics") == [["app"]]


def test_setting_turns_it_off(console: Console, serve: Callable[..., Server]) -> None:
    function = serve("ingest", console.url, KEEP_REJECTED="false")
    assert requests.post(f"{function.url}/ingest/", data="{}", timeout=10).status_code == 422
    assert console.sql("SELECT count(*) FROM rejected_metrics") == [[0]]


@pytest.mark.alone
def test_answer_is_the_same_when_nothing_can_be_kept(console: Console, serve: Callable[..., Server]) -> None:
    """Behind a lock, and without the function: a refusal waits a moment, and what is right is stored meanwhile."""
    user = console.user()
    function = serve("ingest_batch", console.url)
    good = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T00:00:00Z"}
    blocker = console.connect()
    for sql in (
        "BEGIN; LOCK TABLE rejected_metrics IN ACCESS EXCLUSIVE MODE",
        "ROLLBACK; DROP FUNCTION keep_rejected(json)",
    ):
        blocker.run(sql)
        for _ in range(3):
            began = time.monotonic()
            answer = requests.post(f"{function.url}/ingest_batch/", json=[good, {}], timeout=10)
            assert (answer.status_code, answer.json()["stored"], answer.json()["rejected"]) == (207, 1, 1)
            assert time.monotonic() - began < 2
    blocker.close()
    assert "rejected metrics are not kept" in function.log
    assert "internal error" not in function.log


def test_flood_is_kept_in_part(stack: Stack, stack_console: Console) -> None:
    stack.send_batch([{}] * 1000)
    assert stack_console.sql("SELECT count(*) FROM rejected_metrics")[0][0] <= 100


@pytest.mark.parametrize("name", ["ingest", "ingest_batch", "users"])
def test_functions_import_nothing_of_the_commands(name: str) -> None:
    environment = {**os.environ, "DATABASE_URL": "postgresql://u@127.0.0.1:1/d", "ALLOW_ANONYMOUS": "true"}
    code = "import sys, main; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT / "functions" / name, env=environment, capture_output=True, text=True, check=True
    )
    loaded = {module for module in done.stdout.split() if module.startswith("metrics_ingest.")}
    assert "metrics_ingest.http.service" in loaded
    assert not [module for module in loaded if module.startswith("metrics_ingest.admin")]


def test_allowance_refills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("metrics_ingest.storage.quarantine.time.monotonic", lambda: now)
    allowance = rejected.Allowance(20, 100)
    assert allowance.take(10_000) == 100
    assert allowance.take(1) == 0
    now += 1
    assert allowance.take(10_000) == 20
    now += 1e6
    assert allowance.take(10_000) == 100
