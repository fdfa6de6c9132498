"""The SDK for JavaScript in Chromium posts to ingest_otlp from a page of another origin."""

import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser

from otlp.conftest import Otlp
from otlp.sdks import HERE
from support.metrics import register
from support.node import node_modules
from support.processes import Server

SESSION = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
ENTRY = f"app:{hashlib.sha256(b'secret').hexdigest()}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The page's script with the SDK, by esbuild."""
    target = tmp_path_factory.mktemp("bundle") / "page.js"
    command = [
        str(node_modules(HERE / "js") / ".bin/esbuild"),
        str(HERE / "js/page.js"),
        "--bundle",
        "--log-level=error",
    ]
    subprocess.run([*command, "--platform=browser", f"--outfile={target}"], check=True, timeout=60)
    return target.read_bytes()


@contextmanager
def page(script: bytes) -> Iterator[str]:
    """Serve a page with the script; yield its origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_script = self.path == "/page.js"
            body = script if is_script else b'<!doctype html><title>page</title><script src="/page.js"></script>'
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript" if is_script else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def visit(browser: Browser, origin: str, url: str, user: str, headers: dict[str, str]) -> None:
    """Open the page in Chromium and let it record and export."""
    opened = browser.new_page()
    try:
        opened.goto(origin)
        arguments = [url, user, SESSION, headers]
        opened.evaluate("([url, user, session, headers]) => record(url, user, session, headers)", arguments)
    finally:
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["listed", "listed, with a key", "any origin", "not listed"])
def test_page_posts_through_cors(
    database_url: str, serve: Callable[..., Server], bundle: bytes, browser: Browser, mode: str
) -> None:
    user = register(database_url)
    with page(bundle) as origin:
        origins = {"any origin": "*", "not listed": "https://app.example.com"}
        settings = {"CORS_ORIGINS": origins.get(mode, f"https://app.example.com,{origin}")}
        if "key" in mode:
            settings |= {"API_KEYS": ENTRY, "ALLOW_ANONYMOUS": "false"}
        server = serve("ingest_otlp", database_url, **settings)
        headers = {"x-api-key": "secret"} if "key" in mode else {}
        visit(browser, origin, server.url, user, headers)
    rows = Otlp(server, database_url).rows(user)
    found = sorted((row["metric_type"], row["value"], row["session_id"]) for row in rows)
    assert found == (
        [] if mode == "not listed" else [("talked_time", 2.5, SESSION), ("voice_sentiment", 0.25, SESSION)]
    )
