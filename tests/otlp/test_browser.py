"""The SDK for JavaScript in Chromium posts to ingest_otlp from a page of another origin."""

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from otlp.conftest import Otlp
from otlp.sdks import HERE, node_modules
from support.metrics import register
from support.processes import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SESSION = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
ENTRY = f"app:{hashlib.sha256(b'secret').hexdigest()}"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The page's script with the SDK, by esbuild."""
    target = tmp_path_factory.mktemp("bundle") / "page.js"
    command = [str(node_modules() / ".bin/esbuild"), str(HERE / "js/page.js"), "--bundle", "--log-level=error"]
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


def visit(origin: str, url: str, user: str, headers: dict[str, str]) -> None:
    """Open the page in Chromium and let it record and export."""
    assert CHROMIUM
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            opened = browser.new_page()
            opened.goto(origin)
            opened.evaluate("([url, user, session, headers]) => record(url, user, session, headers)",
                            [url, user, SESSION, headers])  # fmt: skip
        finally:
            browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["listed", "listed, with a key", "any origin", "not listed"])
def test_page_posts_through_cors(
    database_url: str, serve: Callable[..., Server], bundle: bytes, tmp_path: Path, mode: str
) -> None:
    user = register(database_url)
    with page(bundle) as origin:
        origins = {"any origin": "*", "not listed": "https://app.example.com"}
        settings = {"CORS_ORIGINS": origins.get(mode, f"https://app.example.com,{origin}")}
        if "key" in mode:
            settings |= {"API_KEYS": ENTRY, "ALLOW_ANONYMOUS": "false"}
        server = serve("ingest_otlp", database_url, **settings)
        headers = {"x-api-key": "secret"} if "key" in mode else {}
        visit(origin, server.url, user, headers)
    rows = Otlp(server, database_url).rows(user)
    found = sorted((row["metric_type"], row["value"], row["session_id"]) for row in rows)
    assert found == (
        [] if mode == "not listed" else [("talked_time", 2.5, SESSION), ("voice_sentiment", 0.25, SESSION)]
    )
