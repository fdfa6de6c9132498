"""The log: one line of JSON an event, enough to act on, and no secret and no payload."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import requests

from faults.load import locked, post_all
from metrics_ingest import logs
from support.fake_postgres import FakePostgres, Last, answer
from support.metrics import metric, register
from support.processes import ROOT, Server, free_port

Serve = Callable[..., Server]
KEY = "a-key-that-nobody-should-see"
SECRET = "a-password-that-nobody-should-see"


def events(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines() if line]


@pytest.fixture
def keyed(database_url: str, serve: Serve) -> Server:
    url = database_url.replace("postgres@", f"postgres:{SECRET}@")
    api_keys = f"phone:{hashlib.sha256(KEY.encode()).hexdigest()}"
    return serve("ingest", url, API_KEYS=api_keys, ALLOW_ANONYMOUS="false", WRITE_QUEUE="1")


def test_first_line_has_the_effective_settings_and_no_secret(keyed: Server) -> None:
    (start,) = events(keyed)
    assert start["severity"] == "INFO"
    assert start["message"].startswith("metrics-ingest ")
    assert start["settings"]["write_queue"] == 1
    assert start["settings"]["write_timeout_s"] == 10
    assert start["settings"]["api_keys"] == ["phone"]
    assert start["settings"]["database"]["password"] == "set"
    assert SECRET not in keyed.log
    assert hashlib.sha256(KEY.encode()).hexdigest() not in keyed.log


def test_refused_request_is_one_line_without_its_payload(keyed: Server, database_url: str) -> None:
    body = metric(register(database_url), value="a-value-that-nobody-should-see")
    for headers in ({"X-API-Key": KEY}, {"X-API-Key": "wrong"}):
        requests.post(keyed.url, json=body, headers=headers, timeout=10)
    _, refused, unauthorized = events(keyed)
    assert (refused["severity"], refused["message"]) == ("INFO", "request refused")
    assert [refused[name] for name in ("function", "status", "code", "key")] == [
        "ingest",
        422,
        "invalid_value",
        "phone",
    ]
    assert [unauthorized[name] for name in ("status", "code", "key")] == [401, "unauthorized", None]
    for hidden in (KEY, "a-value-that-nobody-should-see", body["user_id"], body["metric_id"]):
        assert hidden not in keyed.log


def test_overload_of_many_requests_is_one_warning_at_once(database_url: str, serve: Serve) -> None:
    server = serve("ingest", database_url, WRITE_QUEUE="1", LOG_LEVEL="WARNING")
    user_id = register(database_url)
    with locked(database_url) as unlock:
        answers = post_all(server.port, "/ingest/", [metric(user_id) for _ in range(100)], unlock)
    assert [answer.status for answer in answers].count(503) > 50
    (warning,) = events(server)
    assert (warning["severity"], warning["message"]) == ("WARNING", "requests rejected: overloaded")
    assert warning["count"] == 1
    assert warning["waiting"] == 1


def test_repeated_warning_is_one_line_a_period_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "TALLY_S", 0.05)

    async def run() -> None:
        tally = logs.Tally(logging.getLogger("metrics_ingest.test"), "it happened")
        for number in range(5):
            tally.add(waiting=number)
        await asyncio.sleep(0.2)

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["it happened"] * 2
    facts = [vars(record)["facts"] for record in caplog.records]
    assert facts == [{"count": 1, "waiting": 0}, {"count": 4, "waiting": 4}]


def test_outage_is_logged_with_its_reason(serve: Serve) -> None:
    server = serve("ingest", f"postgresql://nobody@127.0.0.1:{free_port()}/none", WRITE_TIMEOUT_S="1.5")
    answers = post_all(server.port, "/ingest/", [metric("b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d") for _ in range(30)])
    assert {answer.status for answer in answers} == {503}
    _, retrying, rejected = events(server)
    assert retrying["severity"] == rejected["severity"] == "WARNING"
    assert "ConnectionRefusedError" in retrying["reason"]
    assert rejected["message"] == "requests rejected: store_unavailable"


def test_end_of_an_outage_is_logged(serve: Serve) -> None:
    with FakePostgres([Last(), Last(), Last(), answer()]) as database:
        server = serve("ingest", database.url, WRITE_LANES="1")
        body = metric("b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d")
        assert requests.post(server.url, json=body, timeout=20).status_code == 200
    _, retrying, available = events(server)
    assert retrying["message"] == "the database is unavailable, trying again"
    assert (available["severity"], available["message"]) == ("INFO", "the database is available again")


@pytest.mark.parametrize(("level", "lines"), [("INFO", 2), ("WARNING", 0)])
def test_log_level_is_honoured(database_url: str, serve: Serve, level: str, lines: int) -> None:
    server = serve("ingest", database_url, LOG_LEVEL=level)
    assert requests.post(server.url, data=b"{", timeout=10).status_code == 400
    assert len(events(server)) == lines


def test_ids_that_the_framework_adds_are_in_the_same_line(database_url: str, serve: Serve) -> None:
    server = serve("ingest", database_url, LOG_EXECUTION_ID="true")
    requests.post(server.url, data=b"{", headers={"Function-Execution-Id": "abc123"}, timeout=10)
    refused = events(server)[-1]
    assert refused["message"] == "request refused"
    assert refused["logging.googleapis.com/labels"] == {"execution_id": "abc123"}


def test_operators_find_every_message_in_the_documentation() -> None:
    documentation = (ROOT / "docs" / "operations.md").read_text()
    source = "".join(
        path.read_text() for path in (ROOT / "src" / "metrics_ingest").rglob("*.py") if path.parent.name != "client"
    )  # which runs in other people's programs
    messages = re.findall(r'(?:logger\.\w+\(|Tally\(logger, )"([^"]+)"', source)
    assert len(messages) >= 6
    for message in messages:
        assert f"`{message.replace('%s', '…')}`" in documentation
