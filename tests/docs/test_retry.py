"""The examples of clients that retry, through everything that may go wrong on the way."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from support.processes import ROOT, Stack
from support.proxy import Proxy

USER_ID = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
# What a proxy does to a request: bytes are the answer instead of the function's, None loses the function's answer.
NO_ANSWER = b""
ANSWER_LOST = None
CUT_SHORT = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"message": "3 of'
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
NONSENSE_DATE = UNAVAILABLE.replace(b"Retry-After: 1", b"Retry-After: soon")
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
CUT_CHUNKS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"
NO_REPORT = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
OTHER_JSON = NO_REPORT.replace(b"OK\r\n", b"OK\r\nContent-Type: application/json\r\n").replace(b"<html>", b'["a" ]')
REDIRECT = b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def unavailable_until(seconds: float) -> bytes:
    """503 with a date."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    return UNAVAILABLE.replace(b"Retry-After: 1", f"Retry-After: {date}".encode())


def run(url: str, example: str = "retry.py", **environment: str) -> Any:
    """Run an example."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / example)],
        env={"PATH": os.environ["PATH"], "METRICS_URL": url, **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("troubles", "told"),
    [
        ((), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((NO_ANSWER, UNAVAILABLE), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((ANSWER_LOST,), "0 of 3 metrics stored, 3 had been stored before\n"),
        ((UNAVAILABLE, ANSWER_LOST, CUT_SHORT, NO_ANSWER), "0 of 3 metrics stored, 3 had been stored before\n"),
        ((CUT, CUT_CHUNKS, NONSENSE_DATE), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((unavailable_until(-9), unavailable_until(1)), "3 of 3 metrics stored, 0 had been stored before\n"),
    ],
)
@pytest.mark.parametrize("example", ["retry.py", "client.py"])
def test_example_stores_everything_once(
    stack: Stack, troubles: tuple[bytes | None, ...], told: str, example: str
) -> None:
    requests.post(stack.users.url, json={"user_id": USER_ID, "name": "Greg"}, timeout=10)
    before = len(stack.stored(USER_ID))
    with Proxy(stack.ingest_batch.url) as proxy:
        proxy.answer_next(*troubles)
        done = run(proxy.url, example)
        assert proxy.unused_answers == 0
    assert (done.stdout, done.stderr) == (told if example == "retry.py" else "3 metrics stored\n", "")
    assert len(stack.stored(USER_ID)) == before + 3


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (NO_REPORT, "not a report of ingest_batch"),
        (OTHER_JSON, "not a report of ingest_batch"),
        (REDIRECT, "308 for {url}/ingest_batch/: a redirect: use '/elsewhere'"),
        (NO_REPORT.replace(b"200 OK", b"401 Unauthorized"), "401 Client Error: Unauthorized"),
    ],
)
def test_example_names_an_answer_that_is_no_report(stack: Stack, reply: bytes, error: str) -> None:
    with Proxy(stack.ingest_batch.url) as proxy:
        proxy.answer_next(reply)
        done = run(proxy.url)
        assert (done.returncode, proxy.unused_answers) == (1, 0)
        assert "requests.exceptions.HTTPError: " in done.stderr
        assert error.format(url=proxy.url) in done.stderr


def test_example_sends_its_key_and_not_what_netrc_has(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password secret\n")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import retry, requests;"
        "requests.Session.send = lambda self, request, **_: sys.exit(json.dumps(dict(request.headers)));"
        "retry.send('http://127.0.0.1:1', [], 'k', sys.argv[2])"
    )
    for key, sent in (("mi_key", "Bearer mi_key"), ("", None)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "examples"), key],
            env={"PATH": os.environ["PATH"], "NETRC": str(tmp_path / "netrc")}, capture_output=True, text=True,
        )  # fmt: skip
        assert json.loads(done.stderr).get("Authorization") == sent
