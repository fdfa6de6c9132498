"""Whatever fails inside, the reply is a problem of ours that reveals nothing."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import requests
from starlette.requests import Request

from metrics_ingest.errors import StatementRefused, StoreUnavailable
from metrics_ingest.http.service import Service
from support.processes import Server, Stack, in_a_new_process, query
from support.raw import abandon, exchange, post

SECRET = "SELECT secret FROM /etc/hunter2"
CORRELATION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


class Unprintable(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise ValueError(SECRET)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        KeyError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        RecursionError(SECRET),
        MemoryError(SECRET),
        StopAsyncIteration(SECRET),
        AssertionError(SECRET),
        TimeoutError(SECRET),
        OSError(5, SECRET),
        StatementRefused(SECRET),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unexpected_error_is_500_with_an_id_that_the_log_has_too(
    library: None, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def handler(body: bytes, headers: Any) -> Any:
        raise error

    answer = respond(handler)
    assert answer.status_code == 500
    assert dict(answer.raw_headers)[b"content-type"] == b"application/problem+json"
    text = bytes(answer.body).decode()
    assert '"code":"internal_error"' in text
    assert SECRET not in text
    (correlation_id,) = set(CORRELATION_ID.findall(text))
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert correlation_id in f"{record.msg % (record.args or ())} {record.__dict__.get('facts')}"


def respond(handler: Any) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return asyncio.run(in_a_new_process(Service("ingest", handler).respond(Request(scope, receive))))


def test_reason_for_being_unavailable_is_not_told(library: None) -> None:
    async def handler(body: bytes, headers: Any) -> Any:
        raise StoreUnavailable(SECRET)

    answer = respond(handler)
    assert answer.status_code == 503
    assert SECRET.encode() not in answer.body


def test_message_of_the_database_is_not_told(database_url: str, serve: Callable[..., Server]) -> None:
    query(
        database_url,
        f"""CREATE OR REPLACE FUNCTION register_users(batch json) RETURNS json LANGUAGE plpgsql
            AS $$ BEGIN RAISE division_by_zero USING MESSAGE = '{SECRET}', DETAIL = '{SECRET}'; END $$""",
    )
    server = serve("users", database_url)
    answer = requests.post(server.url, json={"name": "Greg"}, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    (correlation_id,) = set(CORRELATION_ID.findall(answer.text))
    assert correlation_id in server.log
    for part in (SECRET, "22012", "plpgsql", "Traceback", "pg8000"):
        assert part not in answer.text


@pytest.mark.parametrize("path", ["/", "/health", "/health/", "/ingest/health"])
@pytest.mark.parametrize("host", ["[", "a b", "\u00ff", "[::1", "x:y:z", "", "evil.example"])
def test_host_field_is_nothing_that_anything_depends_on(serving: Server, host: str, path: str) -> None:
    answer = exchange(serving.port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


@pytest.fixture
def serving(stack: Stack) -> Server:
    return stack.ingest


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL"])
def test_other_methods_are_405_without_a_trace(serving: Server, method: str) -> None:
    request = post("/ingest/", b"{}", "X-API-Key: hunter2").replace(b"POST", method.encode(), 1)
    answer = exchange(serving.port, request)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: " in answer.lower()
    assert b"hunter2" not in answer


@pytest.mark.parametrize("follows", [b"\0\0\0", post("/", b"{}") + b"\0", b""], ids=["garbage", "pipeline", "silence"])
def test_answer_that_nobody_waits_for_is_no_failure(stack: Stack, follows: bytes) -> None:
    body = b'{"user_id":"%s","metric_type":"talked_time","value":1,"timestamp":"2024-08-08T12:34:56Z"}'
    for _ in range(20):
        abandon(stack.ingest.port, post("/ingest/", body % stack.user().encode()) + follows)
    assert requests.get(f"{stack.ingest.url}/health", timeout=10).ok
    assert "Traceback" not in stack.ingest.log
    assert "Exception" not in stack.ingest.log
