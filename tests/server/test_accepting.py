"""A crowd of new clients is let in at once, and nobody is when the server has stopped."""

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvicorn

import metrics_ingest.http.service  # noqa: F401  # for its effect: every function imports it

TURNS = 8
CROWD = 64


async def app(scope: object, receive: object, send: object) -> None:
    """Nobody sends a request."""


async def let_in() -> int:
    """How many of a crowd that stands at the door are in after a few turns of the event loop."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with socket.create_server(("127.0.0.1", 0), backlog=CROWD) as listener:
        address = listener.getsockname()
        with ExitStack() as clients:
            for _ in range(CROWD):
                clients.enter_context(socket.create_connection(address))
            await server.startup([listener])
            for _ in range(TURNS):
                await asyncio.sleep(0)
            inside = len(server.server_state.connections)
        await server.shutdown([listener])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return inside


def test_a_crowd_is_let_in_within_a_few_turns_of_the_loop() -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(let_in()) == CROWD
