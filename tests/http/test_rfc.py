"""HTTP as the RFCs have it, against a running function: what an attacker, and what the usual libraries send.

Each is tried as one packet and cut in two at every interesting place. What uvicorn itself gets wrong is not tried with
SERVER=stock: there nothing of ours sees the bytes.
"""

import json
import socket
import subprocess
import time
from contextlib import suppress
from shutil import which
from typing import Any

import pytest
import requests

from metrics_ingest.errors import CODES
from support.processes import CHOSEN, Stack, eventually
from support.raw import exchange, head, post

not_stock = pytest.mark.skipif(CHOSEN.get("SERVER") == "stock", reason="uvicorn itself gets this wrong")
BAD = b"\0\1\2 garbage\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# What Java's HttpClient sends with each request until it knows the server (HTTP/2 is its default).
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
    "User-Agent: Java-http-client/21.0.2",
    "Content-Type: application/json",
)
WEBSOCKET = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """The status and the body of each answer."""
    found = []
    while received:
        fields, _, received = received.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in fields.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body, received = received[: lengths[0]], received[lengths[0] :]
        found.append((int(fields[9:12]), body))
    return found


def check_problem(answer: tuple[int, bytes], code: str) -> None:
    status, body = answer
    assert (status, json.loads(body)["code"]) == (CODES[code], code)


def body_of(metric: dict[str, Any]) -> bytes:
    return json.dumps(metric).encode()


def in_two(port: int, data: bytes, at: int) -> bytes:
    """Send the bytes in two packets, and return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(data[:at])
        time.sleep(0.05)
        connection.sendall(data[at:])
        received = b""
        while piece := connection.recv(65_536):
            received += piece
        return received


LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@not_stock
@pytest.mark.parametrize("fields", [JAVA, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("cut", [0, 30, "head", "body", -10])
def test_upgrade_that_is_not_served_is_ignored(
    stack: Stack, metric: dict[str, Any], fields: tuple[str, ...], cut: Any
) -> None:
    request = post("/ingest/", body_of(metric), *fields)
    at = {"head": request.index(b"{"), "body": request.index(b"{") + 20}.get(cut, cut)
    received = in_two(stack.ingest.port, request + LAST, at % len(request))
    assert [status for status, _ in answers(received)] == [200, 200]
    assert len(stack.stored(metric["user_id"])) == 1


@not_stock
def test_body_after_an_upgrade_in_chunks_is_read(stack: Stack, metric: dict[str, Any]) -> None:
    body = body_of(metric)
    fields = "\r\n".join(["POST /ingest/ HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *JAVA])
    request = f"{fields}\r\n\r\n".encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert [status for status, _ in answers(in_two(stack.ingest.port, request + LAST, 300))] == [200, 200]
    assert len(stack.stored(metric["user_id"])) == 1


@pytest.mark.parametrize("fields", [JAVA, WEBSOCKET], ids=["h2c", "websocket"])
def test_nothing_is_smuggled_in_a_body_behind_an_upgrade(
    stack: Stack, metric: dict[str, Any], fields: tuple[str, ...]
) -> None:
    """A gateway that keeps its connections would give the second answer to another client."""
    hidden = post("/ingest/", body_of(metric))
    (answer,) = answers(exchange(stack.ingest.port, post("/ingest/", hidden, *fields), wait_s=1, until_closed=True))
    check_problem(answer, "malformed_json")
    assert stack.stored(metric["user_id"]) == []


@not_stock
@pytest.mark.skipif(not which("curl"), reason="no curl is installed")
def test_curl_that_asks_for_http_2_is_served(stack: Stack, metric: dict[str, Any]) -> None:
    command = ["curl", "-s", "--http2", "-d", body_of(metric).decode(), f"{stack.ingest.url}/ingest/"]
    said = subprocess.run(
        [*command, "-H", "Content-Type: application/json"], capture_output=True, text=True, timeout=20, check=True
    )
    assert said.stdout == '{"message":"Metric stored successfully!"}'


@not_stock
@pytest.mark.parametrize(
    ("behind", "count"),
    [(BAD, 1), (GET * 3 + BAD, 4), (GET * 70, 65), (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 1)],
)
def test_what_came_before_garbage_is_answered_first(
    stack: Stack, metric: dict[str, Any], behind: bytes, count: int
) -> None:
    request = post("/ingest/", body_of(metric)) + behind
    found = answers(exchange(stack.ingest.port, request, until_closed=True))
    assert [status for status, _ in found] == [200] * count + [400]
    check_problem(found[-1], "malformed_json")
    assert len(stack.stored(metric["user_id"])) == 1


@not_stock
def test_garbage_in_a_body_is_refused_after_the_requests_before_it(stack: Stack, metric: dict[str, Any]) -> None:
    broken = b"POST /ingest/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nnot hexadecimal\r\n"
    found = answers(exchange(stack.ingest.port, post("/ingest/", body_of(metric)) + broken, until_closed=True))
    assert [status for status, _ in found] == [200, 400]
    (alone,) = answers(exchange(stack.ingest.port, broken, until_closed=True))
    check_problem(alone, "malformed_json")


@not_stock
@pytest.mark.parametrize("packets", ["one", "two"])
def test_trailers_never_become_headers(stack: Stack, metric: dict[str, Any], packets: str) -> None:
    body = body_of(metric)
    request = (
        b"POST /ingest/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\nIdempotency-Key: \xff\r\nContent-Type: text/plain\r\nContent-Encoding: br\r\n\r\n"
    ) % (len(body), body)
    at = request.index(b"\r\n0\r\n") + 2 if packets == "two" else 0
    assert [status for status, _ in answers(in_two(stack.ingest.port, request + LAST, at))] == [200, 200]
    assert len(stack.stored(metric["user_id"])) == 1


@not_stock
@pytest.mark.parametrize("before", [b"", GET * 2], ids=["alone", "pipelined"])
@pytest.mark.parametrize("behind", [b"", head("/ingest/", 10) + b"{"], ids=["", "before an unfinished one"])
def test_client_that_has_ended_its_side_is_answered(
    stack: Stack, metric: dict[str, Any], before: bytes, behind: bytes
) -> None:
    request = before + post("/ingest/", body_of(metric)) + behind
    found = answers(exchange(stack.ingest.port, request, finish=True, until_closed=True))
    assert [status for status, _ in found] == [200] * (1 + before.count(b"GET"))
    assert len(stack.stored(metric["user_id"])) == 1


def test_client_that_ends_its_side_within_a_body_is_not_waited_for(stack: Stack) -> None:
    started = time.monotonic()
    exchange(stack.ingest.port, head("/ingest/", 10) + b"{", finish=True, until_closed=True)
    assert time.monotonic() - started < 5
    assert requests.get(stack.ingest.url, timeout=5).ok


@pytest.mark.parametrize("digits", ["0" * 5_000, "0" * 5_000 + "2", "1" + "0" * 30])
def test_content_length_of_very_many_digits_is_refused(stack: Stack, digits: str) -> None:
    request = f"POST /ingest/ HTTP/1.1\r\nHost: x\r\nContent-Length: {digits}\r\n\r\n".encode() + b"{}"
    (status, _), *_ = answers(exchange(stack.ingest.port, request))
    assert status == 400
    assert "internal error" not in stack.ingest.log


@not_stock
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("TRACE / HTTP/1.1", "method_not_allowed"),
        ("OPTIONS * HTTP/1.1", "method_not_allowed"),
        ("CONNECT example.com:443 HTTP/1.1", "method_not_allowed"),
        ("BREW /ingest/ HTTP/1.1", "malformed_json"),
        ("post /ingest/ HTTP/1.1", "malformed_json"),
        ("GET /robots.txt HTTP/1.1", "not_found"),
        ("GET /favicon.ico HTTP/1.1", "not_found"),
        ("DELETE /a%0ab HTTP/1.1", "method_not_allowed"),
        ("GET / HTTP/9.9", "malformed_json"),
        ("GET nothing HTTP/1.1", "malformed_json"),
        ("PRI * HTTP/2.0", "malformed_json"),
    ],
)
def test_odd_requests_are_refused_as_every_other(stack: Stack, line: str, code: str) -> None:
    received = exchange(stack.ingest.port, f"{line}\r\nHost: x\r\n\r\n".encode())
    fields = received.partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: application/problem+json" in fields
    assert (b"allow: get, head, post" in fields) == (code == "method_not_allowed")
    (answer,) = answers(received)
    check_problem(answer, code)


def test_metric_for_a_path_with_a_line_feed_is_stored(stack: Stack, metric: dict[str, Any]) -> None:
    assert requests.post(f"{stack.ingest.url}/ingest/%0a", json=metric, timeout=10).status_code == 200


def test_body_is_not_read_at_length_after_the_reply(stack: Stack) -> None:
    """A GET needs no body, and so the reply comes before it."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", stack.ingest.port), timeout=10) as connection:
        connection.sendall(request)
        with suppress(ConnectionError):
            while sent < 200_000_000:
                sent += connection.send(b"x" * 1_000_000)
    assert sent < 50_000_000
    assert eventually(lambda: requests.get(stack.ingest.url, timeout=5).ok)
