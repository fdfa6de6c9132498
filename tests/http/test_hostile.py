"""What a small request may cost, and who may send one: work and memory that are counted and bounded."""

import asyncio
import gzip
import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from uuid import uuid4

import psutil
import pytest
import requests
from starlette.requests import Request

from metrics_ingest.admin.keys import new_key
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.replies import Reply, report_reply
from metrics_ingest.http.service import Service
from metrics_ingest.model import batch
from metrics_ingest.steps import in_turns
from metrics_ingest.storage import quarantine
from metrics_ingest.storage.ingest import Report
from support.memory import peak_bytes
from support.problems import check_problem
from support.processes import CHOSEN, Postgres, Server, Stack, eventually, in_a_new_process, query
from support.raw import exchange, head, post

MIB = 1 << 20
CLIENTS = 20
LIMIT = 10 * MIB
KEY, ENTRY = new_key("one")
not_stock = pytest.mark.skipif(CHOSEN.get("SERVER") == "stock", reason="uvicorn itself gets this wrong")


# What is reported of a batch.


@pytest.mark.parametrize("ndjson", [False, True], ids=["array", "lines"])
@pytest.mark.parametrize(
    ("item", "rejected", "faults"),
    [("{}", 10_000, 4), ("{}", 250, 4), ("{}", 251, 4), ("7", 1_001, 1), ("[", 1_500, 1)],
)
def test_a_thousand_faults_are_listed_and_all_are_counted(
    stack: Stack, ndjson: bool, item: str, rejected: int, faults: int
) -> None:
    if item == "[" and not ndjson:
        item = "[]"
    body = "\n".join([item] * rejected) if ndjson else f"[{','.join([item] * rejected)}]"
    headers = {"Content-Type": "application/x-ndjson" if ndjson else "application/json"}
    answer = requests.post(stack.ingest_batch.url, data=body, headers=headers, timeout=30)
    report = answer.json()
    assert (answer.status_code, report["received"], report["rejected"]) == (422, rejected, rejected)
    listed, omitted = len(report["errors"]), report.get("errors_omitted", 0)
    assert listed + omitted == rejected * faults
    # A client must know which metrics were rejected: each is named, up to a thousand.
    assert len({error["index"] for error in report["errors"]}) == min(rejected, 1_000)
    assert listed <= 1_000
    assert ("errors_omitted" in report) == (listed < rejected * faults)
    assert len(answer.content) < 300_000


def test_faults_that_only_the_database_finds_are_listed_alike(stack: Stack, metric: dict[str, Any]) -> None:
    del metric["metric_id"]
    metrics = [{**metric, "user_id": str(uuid4()), "metric_type": "nothing"} for _ in range(1_200)]
    report = stack.send_batch([*metrics, metric]).json()
    assert (report["received"], report["stored"], report["rejected"]) == (1_201, 1, 1_200)
    assert [error["index"] for error in report["errors"]] == list(range(1_000))
    assert report["errors_omitted"] == 1_400


def test_counted_faults_are_those_that_would_be_described(library: None) -> None:
    odd: list[Any] = [
        *({}, [], 7, None, "x", {"x": 1}, {str(i): i for i in range(30)}, {"value": "1"}, {"value": True}),
        {"user_id": 1, "metric_type": [], "value": {}, "timestamp": None, "mood": 1},
        {"user_id": str(uuid4()), "metric_type": "a", "value": 1, "timestamp": "2024-08-08T12:34:56Z", "x": 1},
    ]
    for item in odd:
        alone = batch.parse_many(json.dumps([item]).encode(), None)
        behind = batch.parse_many(json.dumps([7] * 1_000 + [item]).encode(), None)
        assert behind.faults[1_000] == []
        assert behind.unlisted == alone.fault_count
        lines = batch.parse_lines(b"7\n" * 1_000 + json.dumps(item).encode(), None)
        assert (lines.faults[1_000], lines.unlisted) == ([], alone.fault_count)


def test_valid_metrics_behind_a_thousand_rejected_ones_are_stored(stack: Stack, metric: dict[str, Any]) -> None:
    report = stack.send_batch([{}] * 1_500 + [metric]).json()
    assert (report["stored"], report["rejected"], report["errors_omitted"]) == (1, 1_500, 5_000)


SMALL_AND_COSTLY = {
    "empty objects": b"[" + b",".join([b"{}"] * 10_000) + b"]",
    "values": b"[" + b",".join([b'{"value":""}'] * 10_000) + b"]",
    "future": b"[" + b",".join([json.dumps({
        "user_id": str(uuid4()), "metric_type": "a", "value": 1, "timestamp": "2199-01-01T00:00:00Z"}).encode()
    ] * 10_000) + b"]",
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("name", SMALL_AND_COSTLY)
def test_a_batch_does_not_hold_the_loop(library: None, name: str) -> None:
    """A heartbeat in the same loop sees the longest pause; the bound is twice the goal, for a busy machine."""

    async def run() -> float:
        pauses, last, running = [0.0], time.perf_counter(), True

        async def heartbeat() -> None:
            nonlocal last
            while running:
                await asyncio.sleep(0)
                pauses.append(time.perf_counter() - last)
                last = time.perf_counter()

        beat = asyncio.create_task(heartbeat())
        await asyncio.sleep(0)
        found = await in_turns(batch.parse_many_steps(SMALL_AND_COSTLY[name], None))
        report_reply(Report(found.received, found.rows, 0, 0, found.faults, found.unlisted))
        running = False
        await beat
        return max(pauses)

    assert min(asyncio.run(run()) for _ in range(5)) < 0.04


# Replies that nobody reads.


def unread(port: int, count: int) -> socket.socket:
    """A client that asks for many large replies and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.connect(("127.0.0.1", port))
    request = post("/ingest_batch/", b"[" + b",".join([b"7"] * 1_000) + b"]")
    connection.sendall(request * count)
    return connection


@pytest.fixture
def one(database_url: str, serve: Callable[..., Server]) -> Server:
    return serve("ingest_batch", database_url)


@not_stock
def test_replies_that_nobody_reads_are_bounded_and_their_clients_disconnected(one: Server) -> None:
    (worker,) = one.workers
    before = worker.memory_info().rss
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(unread(one.port, 60))
        eventually(lambda: connections(worker) >= CLIENTS)
        eventually(lambda: connections(worker) < 5, 60)
        assert peak_bytes(worker.pid) - before < 60 * MIB
    report = requests.post(one.url, data=SMALL_AND_COSTLY["empty objects"], timeout=10).json()
    assert len(report["errors"]) == 1_000


def connections(worker: psutil.Process) -> int:
    return sum(each.status == "ESTABLISHED" for each in worker.net_connections("tcp4"))


def test_reply_without_memory_for_it_lists_nothing(library: None) -> None:
    async def handler(body: bytes, headers: Any) -> Reply:
        reply = Reply(422, b"x" * 1_000_000)
        reply.shorter = b"short"
        return reply

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def test() -> None:
        service = Service("ingest", handler)
        free = service._free_for_replies
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        replies: list[Any] = [await service.respond(Request(scope, receive)) for _ in range(12)]
        assert [len(reply.body) for reply in replies] == [1_000_000] * 10 + [5] * 2
        assert dict(replies[-1].raw_headers)[b"content-length"] == b"5"

        async def send(message: Any) -> None:
            pass

        for reply in replies:
            await reply(scope, receive, send)
        assert service._free_for_replies == free

    asyncio.run(in_a_new_process(test()))


@not_stock
def test_shutdown_does_not_wait_for_a_client_that_reads_nothing(one: Server) -> None:
    with unread(one.port, 60):
        time.sleep(1)
        started = time.monotonic()
        one.process.terminate()
        one.process.wait(20)
        assert time.monotonic() - started < 5


@not_stock
def test_client_that_reads_slowly_gets_everything(one: Server) -> None:
    received = b""
    with unread(one.port, 30) as connection:
        connection.settimeout(10)
        while received.count(b"HTTP/1.1 422") < 30 or not received.endswith(b"}"):
            received += connection.recv(100_000)
            time.sleep(0.005)


# Unfinished bodies.


def test_unfinished_bodies_keep_no_other_body_out(database_url: str, serve: Callable[..., Server]) -> None:
    server = serve("ingest", database_url)
    unfinished = head("/ingest/", LIMIT) + b'{"x":"' + b"a" * (LIMIT - 9)
    packed = gzip.compress(b'{"x":"' + b"a" * 1_000_000 + b'"}')
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            with suppress(ConnectionError):
                connection.sendall(unfinished)
        answer = requests.post(server.url, data=packed, headers={"Content-Encoding": "gzip"}, timeout=10)
        assert answer.json()["code"] == "missing_field"
        time.sleep(2.5)  # by now they are far behind what an honest link sends
        answer = requests.post(server.url, data=iter([b'{"x":"', b"a" * 9_000_000, b'"}']), timeout=10)
        assert answer.json()["code"] == "missing_field"


def test_deadline_of_a_body_does_not_grow_with_what_has_come(database_url: str, serve: Callable[..., Server]) -> None:
    server = serve("ingest", database_url)
    started = time.monotonic()
    received = exchange(server.port, head("/ingest/", LIMIT) + b"a" * (LIMIT - 1), wait_s=30)
    assert b"took too long" in received
    assert 9 < time.monotonic() - started < 13


def test_body_of_a_refused_client_is_not_read(database_url: str, serve: Callable[..., Server]) -> None:
    server = serve("ingest", database_url, API_KEYS=ENTRY, ALLOW_ANONYMOUS="false")
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head("/ingest/", LIMIT))
        with suppress(ConnectionError):
            while sent < LIMIT:
                sent += connection.send(b"x" * min(65_536, LIMIT - sent))
                time.sleep(0.001)
    assert sent < LIMIT
    answer = requests.post(server.url, data=b"x" * 100_000, timeout=10)
    assert answer.status_code == 401


# What is kept of rejected metrics.


def test_rejected_metrics_have_a_budget_for_each_day(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quarantine, "BYTES_PER_DAY", 1_000)
    now = 20_000 * 86_400.0
    monkeypatch.setattr("time.time", lambda: now)
    allowance = quarantine.Allowance(20, 100)
    assert [allowance.spend(400) for _ in range(5)] == [True, True, False, False, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    now += 86_400
    assert allowance.spend(1_000)
    assert not allowance.spend(1)


def test_budget_for_three_months_is_small() -> None:
    assert quarantine.BYTES_PER_DAY * 90 < 10 * 1024**3  # for three months and one process


# A reply of ours, whatever happens.


def test_unknown_outcome_of_the_database_is_a_problem_and_in_the_log(
    database_url: str, serve: Callable[..., Server]
) -> None:
    query(
        database_url,
        """CREATE OR REPLACE FUNCTION store_metrics(user_ids uuid[], timestamps timestamptz[], metric_ids uuid[],
            session_ids uuid[], types text[], numbers float8[], new_sessions boolean[]) RETURNS json LANGUAGE sql
            AS $$ SELECT '[{"position": 1, "outcome": "eaten_by_a_bear"}]'::json $$""",
    )
    metric = {"user_id": str(uuid4()), "metric_type": "a", "value": 1, "timestamp": "2024-08-08T12:34:56Z"}
    for name, body in (("ingest", metric), ("ingest_batch", [metric])):
        server = serve(name, database_url)
        answer = requests.post(server.url, json=body, timeout=10)
        check_problem(answer, "internal_error")
        assert "bear" not in answer.text
        assert "eaten_by_a_bear" in server.log
        assert "storage/ingest.py" in server.log


class Elsewhere(Exception):
    """Somebody else's exception, with an attribute that ours have too."""

    reason = "of somebody else"


@pytest.mark.parametrize("error", [Elsewhere(), RequestRefused(Fault("no_such_code", "x"))], ids=["reason", "code"])
def test_any_exception_is_a_problem_and_its_stack_is_in_the_log(
    library: None, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def handler(body: bytes, headers: Any) -> Any:
        raise error

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    answer = asyncio.run(in_a_new_process(Service("ingest", handler).respond(Request(scope, receive))))
    assert (answer.status_code, json.loads(answer.body)["code"]) == (500, "internal_error")
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.exc_info
    assert record.exc_info[1] is error
    assert "of somebody else" not in str(record.__dict__["facts"])


# Pages of strangers.


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "x"])
def test_without_keys_a_page_of_another_origin_is_refused_before_its_body_is_read(
    stack: Stack, method: str, origin: str
) -> None:
    request = head("/users/", 1_000, f"Origin: {origin}").replace(b"POST", method.encode())
    received = exchange(stack.users.port, request + b"{")
    assert received.startswith(b"HTTP/1.1 403 ")
    assert b'"code":"forbidden_origin"' in received
    assert b"access-control-allow-origin" not in received.lower()


def test_pages_of_the_functions_own_address_and_what_is_no_page_are_served(stack: Stack) -> None:
    user = {"name": "Greg"}
    for headers in (
        {},
        {"Origin": stack.users.url},
        {"Origin": "https://metrics.example", "Host": "metrics.example"},
        {"Origin": "https://metrics.example", "Host": "Metrics.example:443"},
    ):
        assert requests.post(stack.users.url, json=user, headers=headers, timeout=10).status_code == 201
    untyped = requests.post(stack.users.url, data=json.dumps(user), timeout=10)  # as curl, or a Blob without a type
    assert untyped.status_code == 201
    untyped = requests.post(
        stack.users.url, data=json.dumps(user), headers={"Origin": "https://evil.example"}, timeout=10
    )
    check_problem(untyped, "forbidden_origin")


def test_listed_pages_are_served_and_with_a_key_any(postgres: Postgres, serve: Callable[..., Server]) -> None:
    page = {"Origin": "https://app.example.com"}
    other = {"Origin": "https://evil.example"}
    listed = serve("users", postgres.clone(), CORS_ORIGINS="https://app.example.com")
    assert requests.post(listed.url, json={"name": "Greg"}, headers=page, timeout=10).status_code == 201
    check_problem(requests.post(listed.url, json={"name": "Greg"}, headers=other, timeout=10), "forbidden_origin")
    wide = serve("users", postgres.clone(), CORS_ORIGINS="https://*.example.com, http://localhost:*")
    for origin in ("https://app.example.com", "http://localhost:3000"):
        answer = requests.post(wide.url, json={"name": "Greg"}, headers={"Origin": origin}, timeout=10)
        assert answer.status_code == 201
    check_problem(requests.post(wide.url, json={"name": "Greg"}, headers=other, timeout=10), "forbidden_origin")
    anyone = serve("users", postgres.clone(), CORS_ORIGINS="*")
    assert requests.post(anyone.url, json={"name": "Greg"}, headers=other, timeout=10).status_code == 201
    locked = serve("users", postgres.clone(), API_KEYS=ENTRY, ALLOW_ANONYMOUS="false")
    key = {"X-API-Key": KEY}
    assert requests.post(locked.url, json={"name": "Greg"}, headers=other | key, timeout=10).status_code == 201
