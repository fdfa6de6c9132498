"""Many new connections are accepted at once, and none after the server has stopped."""

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvicorn

from metrics_ingest.server import accepting

TURNS = 8
CONNECTIONS = 64


async def app(scope: object, receive: object, send: object) -> None:
    """Nobody sends a request."""


async def accepted() -> int:
    """Return how many of many waiting connections are accepted in a few turns of the event loop."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as listener:
        address = listener.getsockname()
        with ExitStack() as clients:
            for _ in range(CONNECTIONS):
                clients.enter_context(socket.create_connection(address))
            await server.startup([listener])
            for _ in range(TURNS):
                await asyncio.sleep(0)
            count = len(server.server_state.connections)
        await server.shutdown([listener])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return count


def test_many_connections_are_accepted_in_a_few_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(uvicorn.Server, "startup", uvicorn.Server.startup)
    accepting.install()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(accepted()) == CONNECTIONS
