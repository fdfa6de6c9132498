"""A real Chromium, and pages that use the browser client."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from playwright.sync_api import Browser, BrowserContext, Page, Playwright

from clients.disturbances import RecordingProxy
from support.chromium import chromium
from support.processes import ROOT, eventually, query

ARGUMENTS = ("--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
FILES = ROOT / "clients" / "browser"

PAGE = b"""<!doctype html><title>page</title><script type="module">
import { createClient } from "/metrics-ingest.js";
self.begin = (options) => {
  const tell = (path, value) => // again and again, because a test takes the network away
    fetch(path, { method: "POST", keepalive: true, body: JSON.stringify(value) })
      .catch(() => setTimeout(tell, 100, path, value));
  self.client = createClient({
    ...options,
    onRejected: (report) => tell("/reports", report),
    onDropped: (count) => tell("/drops", count),
  });
};
self.ready = true;
</script>"""


class Site:
    """Serves the client and a page that uses it, and collects what its callbacks report."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.drops: list[int] = []
        self.headers: dict[str, str] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/").partition("?")[0]
                body = (FILES / name).read_bytes() if name.endswith((".js", ".html")) else PAGE
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript" if name.endswith(".js") else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Access-Control-Allow-Origin", "*")  # a sandboxed page is of another origin
                for header in site.headers.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (site.reports if self.path == "/reports" else site.drops).append(value)
                self.send_response(204)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Chromium:
    """A Chromium process of the test's own on one profile, which can be killed and started again."""

    def __init__(self, playwright: Playwright, profile: Path) -> None:
        self._playwright = playwright
        self._profile = profile
        self._process: subprocess.Popen[bytes] | None = None
        self.browser: Browser
        self.context: BrowserContext

    def start(self) -> None:
        """Start it and connect to it."""
        port_file = self._profile / "DevToolsActivePort"
        port_file.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [chromium(), *ARGUMENTS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = eventually(lambda: port_file.exists() and port_file.read_text().partition("\n")[0], 60)
        self.browser = self._playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
        self.context = self.browser.contexts[0]

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        (self._profile / "SingletonLock").unlink(missing_ok=True)

    def close(self) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            self.browser.close()
            self.kill()


class User:
    """A registered user, and what is stored of them."""

    def __init__(self, database_url: str) -> None:
        self.id = str(uuid4())
        self.url = database_url
        query(database_url, f"INSERT INTO users (user_id, name) VALUES ('{self.id}', 'Greg')")

    @property
    def values(self) -> list[float]:
        """The values of all stored metrics, in order."""
        rows = query(self.url, f"SELECT value FROM metrics WHERE user_id = '{self.id}' ORDER BY value")
        return [value for (value,) in rows]

    @property
    def ages_s(self) -> list[float]:
        """How old each stored metric said it was when it was received, in seconds, in the order of values."""
        sql = "SELECT extract(epoch FROM received_at - timestamp)::float8 FROM metrics WHERE user_id = "
        return [age for (age,) in query(self.url, f"{sql}'{self.id}' ORDER BY value")]


@dataclass
class Scene:
    """A browser context, a site, a proxy in front of the function, and a user."""

    context: BrowserContext
    site: Site
    proxy: RecordingProxy
    user: User

    def visit(self, script: str = "") -> Page:
        """Open a page of the site; `script` runs before anything of the page."""
        page = self.context.new_page()
        if script:
            page.add_init_script(script)
        page.goto(self.site.url)
        page.wait_for_function("self.ready")
        return page

    def begin(self, page: Page, **options: Any) -> None:
        """Make a client in the page."""
        defaults = {"url": self.proxy.url, "userId": self.user.id, "flushMs": 200}
        page.evaluate("options => { begin(options) }", {**defaults, **options})

    def open(self, script: str = "", **options: Any) -> Page:
        """Open a page and make a client in it."""
        page = self.visit(script)
        self.begin(page, **options)
        return page

    def reload(self, page: Page, **options: Any) -> None:
        """Reload the page and make a client in it."""
        page.reload()
        page.wait_for_function("self.ready")
        self.begin(page, **options)


def record(page: Page, *values: float) -> None:
    """Record the values as talked_time."""
    page.evaluate("values => { for (const value of values) client.record('talked_time', value) }", values)


def settle(page: Page) -> None:
    """Wait until the client has opened its queue and tried to send what is in it."""
    page.evaluate("client.flush()")


def hide(page: Page) -> None:
    """Tell the page that it is hidden, because headless Chromium never hides one."""
    page.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
      document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
    }""")


def wait_for(page: Page, condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    """Poll while the page's events are served."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        page.wait_for_timeout(50)
    return found
