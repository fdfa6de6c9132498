"""Limits of a request: bodies that grow when they are decompressed or parsed, endless headers, and memory."""

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from starlette.requests import Request

from metrics_ingest.errors import Overloaded, RequestRefused, StoreUnavailable
from metrics_ingest.http.bodies import (
    ARRIVING_BODIES,
    GZIP_MEMBERS,
    LARGE_BODIES,
    Memory,
    Reservation,
    check_structure,
    gunzip,
)
from metrics_ingest.http.headers import combined
from metrics_ingest.http.replies import Reply
from metrics_ingest.http.service import Service
from metrics_ingest.server import deadlines
from support.memory import Peak
from support.processes import Postgres, Server, Stack, eventually, function, in_a_new_process
from support.raw import exchange, post

LIMIT = 10_485_760
MIB = 1 << 20
GREW_AT_MOST = 24  # times MAX_BODY_BYTES, for one request at a time: SECURITY.md, Limits


def repeated(unit: bytes, start: bytes = b"[", end: bytes = b"]", separator: bytes = b",") -> bytes:
    """Return a body of the size limit that repeats the unit."""
    times = (LIMIT - len(start) - len(end) + len(separator)) // (len(unit) + len(separator))
    return start + separator.join([unit] * times) + end


def unknown_keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":1' % number for number in range(count)) + b"}"


# Each with the answer, and what it grew the process by before there were limits (MiB).
HEAVY: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty arrays": (lambda: repeated(b"[]"), "ingest_batch", "too_many_metrics"),  # 501
    "empty objects": (lambda: repeated(b"{}"), "ingest_batch", "too_many_metrics"),  # 510
    "numbers": (lambda: repeated(b"1"), "ingest_batch", "too_many_metrics"),  # 328
    "numbers in an envelope": (lambda: repeated(b"1", b'{"metrics":[', b"]}"), "ingest_batch", "too_many_metrics"),
    "nests": (lambda: repeated(b"[" * 150 + b"]" * 150), "ingest_batch", "too_many_metrics"),  # 1,492
    "deeper nests": (lambda: repeated(b"", b"[" * (LIMIT // 2), b"]" * (LIMIT // 2)), "ingest_batch", "malformed_json"),
    "a million keys": (lambda: unknown_keys(1_000_000), "ingest", "payload_too_large"),  # 1,634, and 23 s
    "a million keys of a user": (lambda: unknown_keys(1_000_000), "users", "payload_too_large"),
    "one key a million times": (lambda: repeated(b'"value":1', b"{", b"}"), "ingest", "payload_too_large"),
    "a wide string": (lambda: '{"x":"😀'.encode() + b"a" * (LIMIT - 12) + b'"}', "ingest", "missing_field"),  # 250
    "a wide name": (lambda: '{"name":"😀'.encode() + b"a" * (LIMIT - 15) + b'"}', "users", "invalid_field"),  # 100
    "a string of escapes": (lambda: repeated(b"\\u0041", b'{"metric_type":"', b'"}', b""), "ingest", "missing_field"),
    "a long number": (lambda: repeated(b"9", b'{"value":', b"}", b""), "ingest", "malformed_json"),
    "blanks": (lambda: b" " * LIMIT, "ingest", "malformed_json"),
    "metrics of unknown keys": (
        lambda: b"[" + b",".join([unknown_keys(12)] * 10_000) + b"]",
        "ingest_batch",
        "",
    ),  # 391
    "long texts": (
        lambda: b"[" + b",".join([b'{"user_id":"%s"}' % (b"a" * 1_000)] * 10_000) + b"]",
        "ingest_batch",
        "",
    ),
}


@pytest.fixture(scope="module")
def own(postgres: Postgres) -> Iterator[dict[str, Server]]:
    """Functions of this module's own: their memory is measured."""
    url = postgres.clone()
    with function("ingest", url) as one, function("ingest_batch", url) as many, function("users", url) as users:
        yield {"ingest": one, "ingest_batch": many, "users": users}
        for server in (one, many, users):
            assert "internal error" not in server.log


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_memory_grows_by_a_known_multiple_of_the_limit(own: dict[str, Server], name: str, packed: bool) -> None:
    make, target, code = HEAVY[name]
    body = make()
    headers = {"Content-Type": "application/json"}
    if packed:
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    server = own[target]
    peak, start = Peak(server), time.monotonic()
    answer = requests.post(f"{server.url}/{target}/", data=body, headers=headers, timeout=60)
    assert answer.json().get("code", "") == code, answer.text[:300]
    assert peak.growth < GREW_AT_MOST * LIMIT, f"{peak.growth / MIB:.0f} MiB"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("body", [b"\n" * LIMIT, b"12\n" * (LIMIT // 3), b"\n".join([unknown_keys(12)] * 10_000)])
def test_lines_are_counted_before_they_are_cut(own: dict[str, Server], body: bytes) -> None:
    server = own["ingest_batch"]
    peak = Peak(server)
    answer = requests.post(server.url, data=body, headers={"Content-Type": "application/x-ndjson"}, timeout=60)
    assert answer.status_code in (413, 422)
    assert peak.growth < GREW_AT_MOST * LIMIT, f"{peak.growth / MIB:.0f} MiB"


def test_many_large_bodies_at_once_have_a_limit_together(own: dict[str, Server]) -> None:
    """Each sender stops a byte short of the end of a body of the size limit."""
    server = own["ingest"]
    peak = Peak(server)
    whole = post("/ingest/", b'{"x":"' + b"a" * (LIMIT - 8) + b'"}')
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2 * LARGE_BODIES)]
    try:
        refused = []
        for connection in connections:
            connection.setblocking(True)
            try:
                connection.sendall(whole[:-1])
                connection.settimeout(0.3)
                refused.append(connection.recv(12))
            except TimeoutError:
                refused.append(b"waits")
        assert refused.count(b"waits") == ARRIVING_BODIES
        assert refused.count(b"HTTP/1.1 503") == 2 * LARGE_BODIES - ARRIVING_BODIES
        assert peak.growth < GREW_AT_MOST * LIMIT, f"{peak.growth / MIB:.0f} MiB"
        # Small ones are none of these, and the others are answered when they are whole.
        assert requests.post(server.url, json={}, timeout=10).status_code == 422
        waiting = [connection for connection, answer in zip(connections, refused, strict=True) if answer == b"waits"]
        for connection in waiting:
            connection.settimeout(20)
            connection.sendall(whole[-1:])
            assert connection.recv(12) == b"HTTP/1.1 422"
    finally:
        for connection in connections:
            connection.close()
    assert requests.post(server.url, data=whole.partition(b"\r\n\r\n")[2], timeout=20).status_code == 422


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("way", ["plain", "chunked", "gzip", "gzip, chunked"])
def test_size_limit_is_exact_sent_and_unpacked(own: dict[str, Server], size: int, way: str) -> None:
    body = b'{"x":"' + b"a" * (size - 8) + b'"}'
    headers = {"Content-Type": "application/json"}
    if "gzip" in way:
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    data: Any = iter([body[:70_000], body[70_000:]]) if "chunked" in way else body
    answer = requests.post(own["ingest"].url, data=data, headers=headers, timeout=30)
    assert answer.json()["code"] == ("missing_field" if size <= LIMIT else "payload_too_large")


def test_declared_size_is_refused_before_the_body_comes(own: dict[str, Server]) -> None:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode()
    assert exchange(own["ingest"].port, head, wait_s=5).startswith(b"HTTP/1.1 413 ")


def test_bomb_is_defused_while_it_unpacks(own: dict[str, Server]) -> None:
    """256 MiB of blanks, compressed to 256 KiB."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * MIB) for _ in range(256)) + packer.flush()
    server = own["ingest"]
    peak = Peak(server)
    answer = requests.post(server.url, data=bomb, headers={"Content-Encoding": "gzip"}, timeout=30)
    assert answer.json()["code"] == "payload_too_large"
    assert peak.growth < 6 * LIMIT


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (gzip.compress(b"{}", mtime=0)[:-1], "too early"),
        (gzip.compress(b"{}", mtime=0) + b"x", "too early"),
        (gzip.compress(b"{}", mtime=0) + b"\0" * 512, "incorrect header"),
        (b"\x1f\x8b", "too early"),
        (b"{}", "incorrect header"),
        (b"", "too early"),
        (zlib.compress(b"{}"), "incorrect header"),
        (gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "incorrect data check"),
        (gzip.compress(b"") * (GZIP_MEMBERS + 1), "members"),
    ],
)
def test_broken_gzip_is_malformed(packed: bytes, reason: str) -> None:
    with pytest.raises(RequestRefused, match=reason) as caught:
        gunzip(packed, 100)
    assert caught.value.code == "malformed_json"


@pytest.mark.alone
def test_members_are_one_body_and_cost_linear_time() -> None:
    parts = [b'{"a":', b"", b"1}"]
    assert gunzip(b"".join(map(gzip.compress, parts)), 100) == b'{"a":1}'
    start = time.monotonic()
    gunzip(gzip.compress(b" ") * (GZIP_MEMBERS - 1) + gzip.compress(bytes(range(256)) * 30_000, 0), LIMIT)
    assert time.monotonic() - start < 2


def test_body_in_many_pieces_is_read_in_linear_time(library: None) -> None:
    async def handler(body: bytes, headers: Any) -> Reply:
        return Reply(200, str(len(body)).encode())

    pieces = iter([{"type": "http.request", "body": b" ", "more_body": i < 999_999} for i in range(1_000_000)])

    async def receive() -> Any:
        return next(pieces)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    start = time.process_time()  # what other processes use does not count
    answer = asyncio.run(in_a_new_process(Service("ingest", handler).respond(Request(scope, receive))))
    assert answer.body == b"1000000"
    assert time.process_time() - start < 30  # it takes 3 s; copying each time would take minutes


@pytest.mark.parametrize("first_part", [b"", b'{"user_id":'])
def test_client_that_disconnects_in_its_body_never_reaches_the_handler(library: None, first_part: bytes) -> None:
    async def handler(body: bytes, headers: Any) -> Reply:
        raise AssertionError

    parts = [{"type": "http.request", "body": first_part, "more_body": True}] if first_part else []
    messages = iter([*parts, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    answer = asyncio.run(in_a_new_process(Service("ingest", handler).respond(Request(scope, receive))))
    assert (answer.status_code, json.loads(answer.body)["detail"]) == (400, "the body ended too early")


@pytest.mark.alone
def test_one_deadline_is_for_all_parts_of_a_body(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(body: bytes, headers: Any) -> Reply:
        raise AssertionError

    waits = iter([0.8, 60])  # seconds

    async def receive() -> Any:
        await asyncio.sleep(next(waits))
        return {"type": "http.request", "body": b"{", "more_body": True}

    monkeypatch.setattr(deadlines, "BODY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(deadlines, "SWEEP_S", 0.05)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    start = time.monotonic()
    answer = asyncio.run(in_a_new_process(Service("ingest", handler).respond(Request(scope, receive))))
    assert (answer.status_code, json.loads(answer.body)["detail"]) == (400, "the body took too long to arrive")
    assert 0.95 < time.monotonic() - start < 1.6


@pytest.mark.alone
def test_repeated_header_fields_cost_linear_time() -> None:
    raw = [(b"h%d" % number, b"1") for number in range(20_000)]
    start = time.monotonic()
    assert combined([*raw, *raw])[b"h7"] == b"1, 1"
    assert time.monotonic() - start < 1


def test_batch_with_more_fields_than_known_is_still_told_of_each() -> None:
    check_structure(json.dumps([{f"k{i}": i for i in range(10)}] * 10_000).encode(), 10_000)


def test_unpacked_size_is_refused_with_its_own_code() -> None:
    assert gunzip(gzip.compress(b" " * 100), 100) == b" " * 100
    with pytest.raises(RequestRefused, match="100 bytes at most") as caught:
        gunzip(gzip.compress(b" " * 101), 100)
    assert caught.value.code == "payload_too_large"


def test_large_body_without_free_memory_is_overloaded() -> None:
    async def test() -> None:
        memory = Memory(25)
        first, second = Reservation(memory), Reservation(memory)
        first.add(100)
        with pytest.raises(Overloaded):
            second.add(1)
        second.release()
        first.release()
        second.add(100)

    asyncio.run(in_a_new_process(test()))


def test_arriving_bodies_leave_memory_for_whole_ones() -> None:
    async def test() -> None:
        memory = Memory(25)
        arriving, whole = Reservation(memory), Reservation(memory)
        arriving.add(75, arriving=True)
        with pytest.raises(Overloaded):
            whole.add(1, arriving=True)
        whole.add(25)
        whole.release()
        arriving.arrived()
        whole.add(25, arriving=True)

    asyncio.run(in_a_new_process(test()))


def test_memory_of_a_body_is_free_again_after_each_reply(library: None) -> None:
    """Also where the handler, the size or the gzip failed."""

    async def handler(body: bytes, headers: Any) -> Reply:
        raise StoreUnavailable("for the test")

    async def send(service: Service, body: bytes, *fields: tuple[bytes, bytes]) -> int:
        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        scope = {"type": "http", "method": "POST", "path": "/", "headers": list(fields)}
        return (await service.respond(Request(scope, receive))).status_code

    async def all_of_them() -> list[int]:
        service = Service("ingest", handler)
        free = service.memory.free
        packed = (b"content-encoding", b"gzip")
        statuses = [
            await send(service, b" " * 1_000_000),
            await send(service, b" " * (LIMIT + 1)),
            await send(service, gzip.compress(b"{}", mtime=0), packed),
            await send(service, b"no gzip", packed),
        ]
        assert service.memory.free == free == LARGE_BODIES * LIMIT
        return statuses

    assert asyncio.run(in_a_new_process(all_of_them())) == [503, 413, 503, 400]


FLOODS = {
    "a header without an end": b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000_000,
    "headers without an end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 7_000_000,
    "a name without an end": b"GET / HTTP/1.1\r\n" + b"X" * 40_000_000,
    "a path without an end": b"GET /" + b"a" * 40_000_000,
    "a method without an end": b"G" * 40_000_000,
    "trailers without an end": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    + b"X: y\r\n" * 7_000_000,
    "an extension without an end": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 40_000_000,
    "requests without an end": b"GET / HTTP/1.1\r\n\r\n" * 2_000_000,
}


@pytest.fixture(scope="module")
def tuned(postgres: Postgres) -> Iterator[Server]:
    """A server with limits on what it buffers before a request: uvicorn itself (SERVER=stock) has none."""
    with function("ingest", postgres.clone(), SERVER="tuned") as server:
        yield server
        assert "internal error" not in server.log


@pytest.mark.parametrize("name", FLOODS)
def test_flood_before_a_request_is_cut_off(tuned: Server, name: str) -> None:
    server = tuned
    peak = Peak(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(FLOODS[name])
        except ConnectionError:
            pass
        else:
            pytest.fail("all of it was taken")
    eventually(lambda: requests.get(server.url, timeout=5).ok)
    assert peak.growth < 16 * MIB, f"{peak.growth / MIB:.0f} MiB"


def test_ordinary_heads_and_pipelines_pass(stack: Stack) -> None:
    many = "".join(f"X-{number}: {'v' * 100}\r\n" for number in range(300))
    head = f"GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n".encode()
    assert exchange(stack.ingest.port, head).startswith(b"HTTP/1.1 200 ")
    ten = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert exchange(stack.ingest.port, ten, until_closed=True).count(b"HTTP/1.1 200 OK") == 10
