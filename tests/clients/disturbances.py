"""A proxy between a client and a function that does what networks and proxies do."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass
class Request:
    """A request that arrived at the proxy."""

    lines: list[bytes]
    size: int
    time: float


Disturbance = Callable[[BaseHTTPRequestHandler, Callable[[], requests.Response]], None]


@dataclass
class RecordingProxy:
    """Passes requests on to a function; the `troubles` are done first, one a request. Keeps all that arrived."""

    url: str
    troubles: list[Disturbance] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    replies: list[dict[str, Any]] = field(default_factory=list)
    down: bool = False  # closes each connection without an answer
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def between(upstream: str, *troubles: Disturbance) -> Iterator[RecordingProxy]:
    """Run a proxy in front of a function."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_OPTIONS(self) -> None:
            self._relay(requests.options(upstream + self.path, headers=dict(self.headers), timeout=30))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                proxy.requests.append(Request(body.splitlines(), len(body), time.monotonic()))
                proxy.at_once += 1
                proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
                trouble = no_answer if proxy.down else proxy.troubles.pop(0) if proxy.troubles else None

            def pass_on() -> requests.Response:
                return requests.post(upstream + self.path, data=body, headers=dict(self.headers), timeout=30)

            try:
                if trouble:
                    trouble(self, pass_on)
                else:
                    answer = pass_on()
                    with lock:
                        proxy.replies.append(answer.json())
                    self._relay(answer)
            finally:
                with lock:
                    proxy.at_once -= 1

        def _relay(self, answer: requests.Response) -> None:
            self.send_response_only(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            try:
                self.wfile.write(answer.content)
            except OSError:  # the page was closed
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy = RecordingProxy(f"http://127.0.0.1:{server.server_port}", list(troubles))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def no_answer(handler: BaseHTTPRequestHandler, _pass_on: Callable[[], object]) -> None:
    """The connection breaks before the function has the request."""
    handler.close_connection = True


def stalled(seconds: float) -> Disturbance:
    """Make a disturbance: the connection breaks without an answer after so many seconds."""

    def trouble(handler: BaseHTTPRequestHandler, _pass_on: Callable[[], object]) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return trouble


def answer_lost(handler: BaseHTTPRequestHandler, pass_on: Callable[[], object]) -> None:
    """The batch is stored and the connection breaks before the answer."""
    pass_on()
    handler.close_connection = True


def answer_cut(handler: BaseHTTPRequestHandler, pass_on: Callable[[], requests.Response]) -> None:
    """The batch is stored and half of the answer arrives."""
    body = pass_on().content
    reply(handler, 200, body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    """Answer in place of the function."""
    handler.send_response_only(status)
    fields = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Date, Retry-After", **headers}
    for name, value in {**fields, "Content-Length": str(length or len(body))}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
