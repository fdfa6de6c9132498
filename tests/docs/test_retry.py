"""The README's example of a client that retries, through everything that may go wrong on the way."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from support.processes import ROOT, Stack

USER_ID = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
Trouble = Callable[[BaseHTTPRequestHandler, Callable[[], object]], None]


def no_answer(handler: BaseHTTPRequestHandler, _pass_on: Callable[[], object]) -> None:
    """The connection breaks before the request has arrived."""
    handler.close_connection = True


def answer_lost(handler: BaseHTTPRequestHandler, pass_on: Callable[[], object]) -> None:
    """The batch is stored, but the client never hears of it."""
    pass_on()
    handler.close_connection = True


def unavailable(handler: BaseHTTPRequestHandler, _pass_on: Callable[[], object]) -> None:
    """What the service answers while its database is away."""
    handler.send_response(503)
    handler.send_header("Retry-After", "1")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@contextmanager
def between(upstream: str, *troubles: Trouble) -> Iterator[str]:
    """A proxy that makes trouble, once each, before it passes requests on."""
    pending = list(troubles)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that http.server looks for
            body = self.rfile.read(int(self.headers["Content-Length"]))

            def pass_on() -> requests.Response:
                return requests.post(upstream + self.path, data=body, headers=dict(self.headers), timeout=10)

            if pending:
                pending.pop(0)(self, pass_on)
                return
            answer = pass_on()
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Length"):
                self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("troubles", "told"),
    [
        ((), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((no_answer, unavailable), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((answer_lost,), "0 of 3 metrics stored, 3 had been stored before\n"),
        ((unavailable, answer_lost, no_answer), "0 of 3 metrics stored, 3 had been stored before\n"),
    ],
)
def test_example_stores_everything_once(stack: Stack, troubles: tuple[Trouble, ...], told: str) -> None:
    requests.post(stack.users.url, json={"user_id": USER_ID, "name": "Greg"}, timeout=10)
    before = len(stack.stored(USER_ID))
    with between(stack.ingest_batch.url, *troubles) as url:
        environment = {"PATH": os.environ["PATH"], "METRICS_URL": url}
        command = [sys.executable, "-W", "error", str(ROOT / "examples" / "retry.py")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == told
    assert len(stack.stored(USER_ID)) == before + 3
