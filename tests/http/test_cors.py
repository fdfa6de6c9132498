"""Browsers that post directly: CORS word for word, and a real Chromium."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

import pytest
import requests

from metrics_ingest.admin.keys import new_key
from metrics_ingest.settings import BadSetting, Settings
from support.processes import Postgres, Server, eventually, function, query

PAGE = "https://app.example.com"
KEY, ENTRY = new_key("web")
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def listed(postgres: Postgres) -> Iterator[Server]:
    """A function with keys that two origins may post to."""
    environment = {"CORS_ORIGINS": f"{PAGE}, http://localhost:3000", "API_KEYS": ENTRY, "ALLOW_ANONYMOUS": "false"}
    with function("ingest", postgres.clone(), **environment) as server:
        yield server


@pytest.fixture(scope="module")
def anyone(postgres: Postgres) -> Iterator[Server]:
    """A function that any origin may post to."""
    with function("ingest", postgres.clone(), CORS_ORIGINS="*") as server:
        yield server


def allowed(answer: requests.Response) -> dict[str, str]:
    """The CORS fields of an answer, and Vary."""
    prefix = "access-control-allow-"
    fields = {name.lower().removeprefix(prefix): value for name, value in answer.headers.items()}
    return {name: fields[name] for name in ("origin", "credentials", "vary") if name in fields}


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_preflight_lets_a_listed_origin_send_all_that_the_contract_names(listed: Server, origin: str) -> None:
    answer = requests.options(f"{listed.url}/ingest/", headers={"Origin": origin, **PREFLIGHT}, timeout=10)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "Content-Length" not in answer.headers
    assert allowed(answer) == {"origin": origin, "credentials": "true", "vary": "Origin"}
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
    assert set(answer.headers["Access-Control-Allow-Headers"].split(", ")) == {
        *("authorization", "content-encoding", "content-type", "idempotency-key", "prefer", "x-api-key"),
        *("baggage", "sentry-trace", "traceparent", "tracestate", "x-cloud-trace-context"),
    }
    assert int(answer.headers["Access-Control-Max-Age"]) > 600


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example.com", f"{PAGE}:444", f"{PAGE}.evil.example", "null", "*", ""]
)
def test_other_origins_are_allowed_nothing(listed: Server, origin: str) -> None:
    for answer in (
        requests.options(listed.url, headers={"Origin": origin, **PREFLIGHT}, timeout=10),
        requests.post(listed.url, json={}, headers={"Origin": origin}, timeout=10),
    ):
        assert allowed(answer) == {"vary": "Origin"}


def test_errors_can_be_read_by_the_page_too(listed: Server) -> None:
    origin = {"Origin": PAGE}
    for status, answer in (
        (401, requests.post(listed.url, json={}, headers=origin, timeout=10)),
        (422, requests.post(listed.url, json={}, headers={**origin, "X-API-Key": KEY}, timeout=10)),
        (405, requests.delete(listed.url, headers=origin, timeout=10)),
        (200, requests.get(listed.url, headers=origin, timeout=10)),
    ):
        assert answer.status_code == status
        assert allowed(answer) == {"origin": PAGE, "credentials": "true", "vary": "Origin"}
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"Metric-Id", "Idempotent-Replayed", "Preference-Applied", "Retry-After"} <= set(exposed)


def test_star_allows_every_origin_and_never_credentials(anyone: Server) -> None:
    for answer in (
        requests.options(anyone.url, headers={"Origin": PAGE, **PREFLIGHT}, timeout=10),
        requests.post(anyone.url, json={}, headers={"Origin": PAGE, "Cookie": "a=b"}, timeout=10),
    ):
        assert allowed(answer) == {"origin": "*"}


def test_without_origins_options_is_no_method(postgres: Postgres, serve: Callable[..., Server]) -> None:
    answer = requests.options(serve("ingest", postgres.clone()).url, headers={"Origin": PAGE, **PREFLIGHT}, timeout=10)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
    assert allowed(answer) == {}


@pytest.mark.parametrize(
    "origins",
    ["app.example.com", "https://app.example.com/", "https://app.*.com", "null", f"{PAGE},x", "https://u@h"],
)
def test_what_is_no_origin_stops_the_start(origins: str) -> None:
    environment = {"DATABASE_URL": "postgresql://u@localhost/d", "ALLOW_ANONYMOUS": "true", "CORS_ORIGINS": origins}
    with pytest.raises(BadSetting, match=r"^CORS_ORIGINS must be"):
        Settings.from_environment(environment)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = """<!doctype html><title>page</title><script>
const [url, metric, ids, key] = DATA;
const send = id => JSON.stringify({...metric, metric_id: id});
const told = {};
(async () => {
  const headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = "Bearer " + key;
  try {
    const answer = await fetch(url, {method: "POST", headers, keepalive: true, body: send(ids[0])});
    told.fetch = [answer.status, await answer.text(), answer.headers.get("Metric-Id")];
  } catch (error) { told.fetch = String(error); }
  try {
    const answer = await fetch(url, {method: "POST", headers, body: "{"});
    told.refused = [answer.status, (await answer.json()).code];
  } catch (error) { told.refused = String(error); }
  told.beacon = navigator.sendBeacon(url, new Blob([send(ids[1])], {type: "application/json"}));
  navigator.sendBeacon(url, send(ids[2]));
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


class Page:
    """A page on a port of its own, and what it has told."""

    def __init__(self) -> None:
        told: Queue[dict[str, Any]] = Queue()
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.html)

            def do_POST(self) -> None:
                told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        self.html = b""
        self.told = told
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def serving() -> Iterator[Page]:
    page = Page()
    yield page
    page.server.shutdown()
    page.server.server_close()


@contextmanager
def visited(page: Page, profile: Path) -> Iterator[dict[str, Any]]:
    """What the page tells in Chromium, which stays open meanwhile."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
        f"--user-data-dir={profile}",
        page.origin,
    ]
    with (profile / "log").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield page.told.get(timeout=60)
        except Empty:
            pytest.fail((profile / "log").read_text())
        finally:
            browser.terminate()
            browser.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine")
@pytest.mark.parametrize("mode", ["listed", "listed, with a key", "any origin"])
def test_page_in_chromium_posts_by_fetch_and_beacon(
    database_url: str, serve: Callable[..., Server], tmp_path: Path, mode: str
) -> None:
    user, ids = str(uuid4()), [str(uuid4()) for _ in range(3)]
    query(database_url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")
    metric = {
        "user_id": user,
        "metric_type": "talked_time",
        "value": 1,
        "timestamp": "2024-08-08T12:34:56Z",
    }
    with serving() as page:
        environment = {"CORS_ORIGINS": "*" if mode == "any origin" else f"{PAGE},{page.origin}"}
        if "key" in mode:
            environment |= {"API_KEYS": ENTRY, "ALLOW_ANONYMOUS": "false"}
        server = serve("ingest", database_url, **environment)
        data = json.dumps([f"{server.url}/ingest/", metric, ids, KEY if "key" in mode else None])
        page.html = SCRIPT.replace("DATA", data).encode()
        with visited(page, tmp_path) as told:
            assert told["fetch"] == [200, '{"message":"Metric stored successfully!"}', ids[0]]
            assert told["refused"] == [400, "malformed_json"]
            # A beacon carries credentials and no headers of the page's: it needs a listed origin, and no key.
            # As text, it is no JSON that the contract takes.
            expected = set(ids[:2]) if mode == "listed" else {ids[0]}

            def stored() -> set[str]:
                return {str(row[0]) for row in query(database_url, "SELECT metric_id FROM metrics")}

            eventually(lambda: stored() >= expected)
            time.sleep(0.5)  # for what must not come
            assert stored() == expected
