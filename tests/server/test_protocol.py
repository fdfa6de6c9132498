"""The short path of a POST through the server: what it leaves out, what it keeps, and when it is not taken."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn.config
from functions_framework import _function_registry, aio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from metrics_ingest.http.replies import Reply
from metrics_ingest.server import protocol as tuned
from metrics_ingest.server.handler import without_middleware
from metrics_ingest.server.protocol import EXECUTION_ID, TunedProtocol
from metrics_ingest.server.short_path import short_path
from support.processes import Stack
from support.raw import exchange

POST = b"POST /x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol, installed for one test."""
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    tuned.install()


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it, one item per write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass


Function = Callable[[Request], Awaitable[Response]]


async def echo(request: Request) -> Response:
    """Reply with the body, and say if it had to be waited for."""
    connection = short_path(request.scope)
    assert connection
    body = connection.take_buffered_body(request.scope)
    return Reply(200, (body if body is not None else b"(in pieces) " + await request.body()) or b"nothing")


def framework(function: Function) -> Any:
    """The app that functions-framework makes of an async function."""
    return aio._create_asgi_app_with_function(function, _function_registry.HTTP_SIGNATURE_TYPE, False)


def serve(app: Any, test: Callable[[TunedProtocol, Wire], Awaitable[None]]) -> None:
    """Run the test with a connection to the app, made as functions-framework's server makes it."""

    async def run() -> None:
        config = uvicorn.config.Config(app, lifespan="off", log_config=None)
        config.load()
        assert config.http_protocol_class is TunedProtocol
        protocol = TunedProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        wire = Wire()
        protocol.connection_made(wire)
        await test(protocol, wire)
        protocol.connection_lost(None)
        await asyncio.sleep(0.01)

    asyncio.run(run())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_answer_goes_out_in_one_piece() -> None:
    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        for _ in range(3):
            protocol.data_received(POST)
            await settle()
        assert [piece.endswith(b"\r\n\r\nhello") for piece in wire.pieces] == [True] * 3

    serve(framework(echo), test)


@pytest.mark.parametrize("method", ["POST", "GET", "TRACE"])
@pytest.mark.parametrize("path", ["/x/", "/robots.txt", "/favicon.ico", "/a%0ab"])
def test_requests_go_directly_to_the_handler(method: str, path: str) -> None:
    """functions-framework's app has the shape that `without_middleware` expects; it would reply itself to some."""
    seen = []

    async def depth(request: Request) -> Response:
        seen.append("app" in request.scope)  # set by Starlette, which the short path leaves out
        return Reply(200, b"here")

    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        protocol.data_received(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await settle()
        assert seen == [False]

    serve(framework(depth), test)


async def other(scope: Any, receive: Any, send: Any) -> None:
    await Response("other")(scope, receive, send)


@pytest.mark.parametrize(
    "app", [other, Starlette(routes=[Route("/ingest/", echo)]), Starlette(routes=[])], ids=["plain", "routed", "empty"]
)
def test_app_of_another_shape_is_left_as_it_is(app: Any) -> None:
    assert without_middleware(app) is app


@pytest.mark.parametrize(
    ("request_bytes", "head", "body"),
    [
        (POST.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost"), b"connection: close", b"hello"),
        (POST.replace(b"HTTP/1.1", b"HTTP/1.0"), b"connection: close", b"hello"),
        (b"HEAD /x/ HTTP/1.1\r\nHost: x\r\n\r\n", b"content-length: ", b""),
    ],
    ids=["close", "http-1.0", "head"],
)
def test_other_replies_take_uvicorns_way(request_bytes: bytes, head: bytes, body: bytes) -> None:
    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        protocol.data_received(request_bytes)
        await settle()
        answer = b"".join(wire.pieces)
        assert head in answer.partition(b"\r\n\r\n")[0].lower()
        assert answer.partition(b"\r\n\r\n")[2] == body
        assert wire.closed == (b"close" in head)

    serve(framework(echo), test)


def test_body_in_pieces_is_waited_for() -> None:
    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        protocol.data_received(POST[:-3])
        await settle()
        assert wire.pieces == []
        protocol.data_received(POST[-3:])
        await settle()
        assert b"".join(wire.pieces).endswith(b"(in pieces) hello")

    serve(framework(echo), test)


def test_pipelined_requests_are_answered_in_order_each_with_its_own_body() -> None:
    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        protocol.data_received(b"".join(POST.replace(b"hello", b"hell%d" % number) for number in range(5)))
        await settle()
        answers = b"".join(wire.pieces).split(b"HTTP/1.1 200 OK")[1:]
        assert [answer[-5:] for answer in answers] == [b"hell%d" % number for number in range(5)]

    serve(framework(echo), test)


def test_every_post_has_an_execution_id_and_keeps_the_one_it_came_with() -> None:
    found: list[list[bytes]] = []

    async def collect(request: Request) -> Response:
        found.append([value for name, value in request.scope["headers"] if name == EXECUTION_ID])
        return Reply(200, b"")

    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        for _ in range(2):
            protocol.data_received(POST)
            await settle()
        protocol.data_received(POST.replace(b"Host", b"Function-Execution-Id: mine\r\nHost"))
        await settle()

    serve(framework(collect), test)
    (first,), (second,), (third,) = found
    assert third == b"mine"
    assert first != second
    assert len(first) == len(second) == 12


def test_request_leaves_nothing_to_the_garbage_collector() -> None:
    """Collecting cycles cost a twelfth of the server's time, in pauses of 40 ms."""

    async def test(protocol: TunedProtocol, wire: Wire) -> None:
        for _ in range(3):  # what the first ones make stays
            protocol.data_received(POST)
            await settle()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                protocol.data_received(POST)
                await settle()
            assert gc.collect() < 50
        finally:
            gc.enable()

    serve(framework(echo), test)


def test_pipelined_metrics_over_a_real_socket(stack: Stack, metric: dict[str, Any]) -> None:
    """Good and bad in turn: each gets its own answer, in the order of sending."""
    body = str({**metric, "metric_id": None}).replace("'", '"')
    good = body.replace(', "metric_id": None', "").encode()
    one = b"POST /ingest/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    requests = b"".join(one % len(each) + each for each in (good, b"{", good, b"[]", good))
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = exchange(stack.ingest.port, requests + last, until_closed=True)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200", b"422", b"200", b"200"]
    assert len(stack.stored(metric["user_id"])) == 3
