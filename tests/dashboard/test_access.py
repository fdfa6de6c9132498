"""Who may read what, how, and what every reply carries."""

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from dashboard.conftest import Board
from dashboard.data import DAY, fill, get, read
from metrics_ingest.dashboard import api
from metrics_ingest.dashboard.reader import MAX_WAITING
from support.problems import check_problem
from support.processes import BIN, ROOT, Postgres, Server, eventually, free_port, query

Serve = Callable[..., Server]
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def keys(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def test_read_key_opens_the_api_and_a_write_key_does_not(database_url: str, serve: Serve) -> None:
    environment = {
        "ALLOW_ANONYMOUS": "", "READ_KEYS": keys("lea", "read") + "," + keys("old", "read-old"),
        "API_KEYS": keys("web", "write"),
    }  # fmt: skip
    server = serve("dashboard", database_url, **environment)
    for key in (None, "write", "nonsense", "", "réad".encode().decode("latin-1")):
        answer = get(server, "types", key=key)
        check_problem(answer, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for name in api.ENDPOINTS:
        check_problem(get(server, name), "unauthorized")
    for key in ("read", "read-old"):
        assert get(server, "types", key=key).status_code == 200
    bearer = {"Authorization": "Bearer read"}
    assert requests.get(f"{server.url}/dashboard/api/types", headers=bearer, timeout=10).status_code == 200
    assert requests.get(f"{server.url}/dashboard/", timeout=10).status_code == 200
    assert "read-old" not in server.log


def test_read_key_writes_nothing(database_url: str, serve: Serve) -> None:
    environment = {"ALLOW_ANONYMOUS": "", "READ_KEYS": keys("lea", "read"), "API_KEYS": keys("web", "write")}
    server = serve("users", database_url, **environment)
    answer = requests.post(f"{server.url}/users/", json={"name": "Greg"}, headers={"X-API-Key": "read"}, timeout=10)
    check_problem(answer, "unauthorized")


@pytest.mark.parametrize(("environment", "line"), [
    ({"ALLOW_ANONYMOUS": ""}, "READ_KEYS is not set"),
    ({"ALLOW_ANONYMOUS": "", "API_KEYS": keys("web", "write")}, "READ_KEYS is not set"),
    ({"READ_KEYS": "lea:secret"}, "READ_KEYS must be a comma-separated list of name:sha256-of-key"),
    ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
    ({"READ_DATABASE_URL": "mysql://x:secret@y/z"}, "READ_DATABASE_URL must begin with postgresql://"),
    ({"LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of"),
])  # fmt: skip
def test_bad_setting_stops_the_start_with_its_name(environment: dict[str, str], line: str) -> None:
    good = {"DATABASE_URL": "postgresql://u:secret@localhost/d", "ALLOW_ANONYMOUS": "true", "PATH": os.environ["PATH"]}
    source = ROOT / "functions" / "dashboard" / "main.py"
    done = subprocess.run(
        [BIN / "functions-framework", "--target", "dashboard", "--source", source, "--port", str(free_port())],
        env=good | environment, cwd="/", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"metrics-ingest: {line}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stderr


def as_reader(postgres: Postgres, url: str, role: str = "metrics_reader") -> str:
    """The URL of the same database for a login that has the rights of `role` alone."""
    postgres.run(f"ALTER ROLE {role} LOGIN")
    return url.replace("postgres@/", f"{role}@/")


def test_metrics_reader_suffices_for_everything(postgres: Postgres, serve: Serve) -> None:
    url = postgres.clone()
    fill(url)
    server = serve("dashboard", "postgresql://nobody@localhost:1/none", READ_DATABASE_URL=as_reader(postgres, url))
    user, session = query(url, "SELECT user_id, session_id FROM sessions LIMIT 1")[0]
    needed: dict[str, dict[str, Any]] = {"series": {"metric_type": "talked_time"}, "sessions": {"user_id": user},
                         "session": {"user_id": user, "session_id": session}}  # fmt: skip
    for name in api.ENDPOINTS:
        read(server, name, **needed.get(name, {}))
    # Ends of hours and days, and five-minute steps, are read from the metrics themselves.
    bounds = {"start": "2024-08-05T03:03:00Z", "end": "2024-08-05T07:59:00Z"}
    assert read(server, "overview", **bounds)["metrics"] > 0
    assert read(server, "series", metric_type="talked_time", step="5min", **bounds)["points"]
    assert requests.get(f"{server.url}/dashboard/health", timeout=10).json()["database"] == "ok"


def test_every_transaction_is_read_only_and_bounded(board: Board) -> None:
    """As the superuser of the tests: it is the transaction that forbids to write, not the role alone."""
    from metrics_ingest.dashboard.reader import Reader
    from metrics_ingest.settings import read_database

    reader = Reader(read_database({"DATABASE_URL": board.database_url}))

    def shown() -> list[str]:
        names = ("transaction_read_only", "statement_timeout", "transaction_isolation", "timezone")
        query = "SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in names)
        return list(reader._run(lambda session: session.row(query), time.monotonic() + 5).values())

    assert shown() == ["on", "5s", "repeatable read", "UTC"]
    with pytest.raises(Exception, match="unavailable"):
        reader._run(lambda session: session.rows("DELETE FROM rejected_metrics"), time.monotonic() + 5)
    assert shown() == ["on", "5s", "repeatable read", "UTC"]
    reader._close()
    reader._executor.shutdown()


@pytest.mark.alone
def test_long_query_is_cancelled_and_the_reply_says_so(board: Board, serve: Serve) -> None:
    """A lock that nobody gives back stands for a query that takes too long."""
    server = serve("dashboard", board.database_url)
    from metrics_ingest.settings import read_database
    from metrics_ingest.storage.driver import connect

    blocker = connect(read_database({"DATABASE_URL": board.database_url}), 30)
    blocker.run("BEGIN; LOCK TABLE metric_types IN ACCESS EXCLUSIVE MODE")
    try:
        began = time.monotonic()
        problem = check_problem(get(server, "types"), "store_unavailable")
        assert 4.5 < time.monotonic() - began < 7
        assert "longer than 5 s" in problem["detail"]
    finally:
        blocker.run("ROLLBACK")
        blocker.close()
    assert get(server, "types").status_code == 200


def test_queue_is_bounded_and_says_overloaded(board: Board, serve: Serve) -> None:
    server = serve("dashboard", board.database_url)
    from metrics_ingest.settings import read_database
    from metrics_ingest.storage.driver import connect

    blocker = connect(read_database({"DATABASE_URL": board.database_url}), 30)
    blocker.run("BEGIN; LOCK TABLE metric_types IN ACCESS EXCLUSIVE MODE")
    release = threading.Timer(2, lambda: (blocker.run("ROLLBACK"), blocker.close()))
    release.start()
    count = MAX_WAITING + 8
    with ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(
                get, server, "overview", start=f"2024-08-05T{n // 60:02}:{n % 60:02}:00Z", end="2024-08-09T00:00:00Z"
            )
            for n in range(count)
        ]
        answers = [job.result() for job in jobs]
    release.join()
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 8
    for answer in refused:
        check_problem(answer, "overloaded")
        assert answer.headers["Retry-After"] == "1"
    assert all(answer.status_code == 200 for answer in answers if answer not in refused)


def test_database_away_is_said_and_back_is_noticed(serve: Serve) -> None:
    postgres = Postgres()
    try:
        server = serve("dashboard", postgres.clone())
        assert get(server, "types").status_code == 200
        postgres.stop()
        check_problem(get(server, "types"), "store_unavailable")
        check_problem(requests.get(f"{server.url}/dashboard/health", timeout=10), "store_unavailable")
        assert requests.get(f"{server.url}/dashboard/", timeout=10).status_code == 200
        postgres.start()
        eventually(lambda: get(server, "types").status_code == 200)
        postgres.restart()  # the idle connection is gone: not an error that anybody sees
        assert get(server, "types").status_code == 200
    finally:
        postgres.close()


def test_database_that_was_never_migrated_is_said(postgres: Postgres, serve: Serve) -> None:
    postgres.run("CREATE DATABASE bare")
    server = serve("dashboard", postgres.url("bare"))
    assert "metrics-ingest migrate" in check_problem(get(server, "types"), "store_unavailable")["detail"]


def test_every_reply_carries_the_security_headers(board: Board) -> None:
    for path in ("/", "/dashboard", "/dashboard/", "/dashboard/static/main.js", "/dashboard/api/types",
                 "/dashboard/api/series", "/dashboard/health", "/nowhere"):  # fmt: skip
        answer = requests.get(board.server.url + path, timeout=10, allow_redirects=False)
        assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY, path
    assert requests.post(board.server.url, timeout=10).headers["X-Content-Type-Options"] == "nosniff"
    assert get(board.server, "types").headers["Cache-Control"] == "no-store"


def test_paths(board: Board) -> None:
    url = board.server.url
    assert requests.get(url, timeout=10).json() == {"function": "dashboard", "version": "0.1.0", "status": "ok"}
    page = requests.get(f"{url}/dashboard/", timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<script" in page.text
    assert requests.get(f"{url}/dashboard", timeout=10).url == f"{url}/dashboard/"
    assert requests.get(url, headers={"Accept": "text/html"}, timeout=10).url == f"{url}/dashboard/"
    for path in ("/health", "/dashboard/health", "/dashboard/health/"):
        assert requests.get(url + path, timeout=10).json()["database"] == "ok"
    assert requests.get(f"{url}/api/types", timeout=10).status_code == 200  # where a gateway takes the prefix away
    static = "/dashboard/static/"
    for path in ("/nowhere", "/dashboard/api/", "/dashboard/api/nothing", static, f"{static}none.js",
                 f"{static}../service.py", f"{static}%2e%2e/service.py", f"{static}..%2fapi.py",
                 f"{static}/etc/passwd"):  # fmt: skip
        request = requests.Request("GET", url + path).prepare()
        request.url = url + path  # as it is: requests would take the dots out
        with requests.Session() as session:
            check_problem(session.send(request, timeout=10), "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(board: Board, method: str) -> None:
    for path in ("/", "/dashboard/", "/dashboard/api/types"):
        answer = requests.request(method, board.server.url + path, timeout=10)
        check_problem(answer, "method_not_allowed")
        assert answer.headers["Allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(board: Board) -> None:
    for path in ("/", "/dashboard/", "/dashboard/api/types", "/dashboard/static/main.js"):
        answer = requests.head(board.server.url + path, timeout=10)
        assert (answer.status_code, answer.content) == (200, b"")


def test_files_are_kept_by_etag(board: Board) -> None:
    url = f"{board.server.url}/dashboard/static/main.js"
    answer = requests.get(url, timeout=10)
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    etag = answer.headers["ETag"]
    for sent in (etag, f'"other", W/{etag}', "*"):
        again = requests.get(url, headers={"If-None-Match": sent}, timeout=10)
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert requests.get(url, headers={"If-None-Match": '"other"'}, timeout=10).status_code == 200


def test_vendored_files_are_those_that_were_released() -> None:
    """Their SHA-256 is in the file beside them, with version and licence."""
    vendor = ROOT / "src/metrics_ingest/dashboard/static/vendor"
    said = (vendor / "uPlot.LICENSE.txt").read_text()
    assert "uPlot 1.6.32" in said
    assert "The MIT License" in said
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        assert f"{hashlib.sha256((vendor / name).read_bytes()).hexdigest()}  {name}" in said


def test_page_has_no_inline_code_no_other_host_and_small_files() -> None:
    import re

    static = ROOT / "src/metrics_ingest/dashboard/static"
    html = (static / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=|https?://", html)
    for file in static.rglob("*.*"):
        if "vendor" in file.parts or file.suffix not in (".js", ".css", ".html"):
            continue
        text = file.read_text()
        assert len(text.splitlines()) <= 300, file
        assert "innerHTML" not in text, file
        assert "insertAdjacentHTML" not in text, file
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file


def test_day_is_the_default_of_no_parameter(board: Board) -> None:
    """A range that is given by one end alone."""
    reply = read(board.server, "overview", end=DAY.isoformat())
    assert reply["to"] == "2024-08-05T00:00:00Z"
    assert reply["from"] == "2024-07-29T00:00:00Z"
