"""`metrics-ingest load` against what servers, proxies and networks answer: retried, or named, and never misread."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from metrics_ingest.admin import sending
from support.console import Console
from support.processes import Stack
from support.proxy import Proxy

METRIC = {"user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "metric_type": "talked_time", "value": 1,
          "timestamp": "2024-08-08T12:00:00Z"}  # fmt: skip
REPORT = {"message": "", "received": 1, "stored": 1, "duplicates": 0, "rejected": 0, "errors": []}


def answer(status: str, *fields: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A reply that closes the connection."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1") + body


def ok(body: object = REPORT, **options: Any) -> bytes:
    """A reply 200 with this JSON."""
    return answer("200 OK", "Content-Type: application/json", body=json.dumps(body).encode(), **options)


class Script:
    """An HTTP server that gives these answers, one a request, and the last one again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/ingest_batch/"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for reply in itertools.chain(self.answers, itertools.repeat(self.answers[-1])):
            connection, _ = self._listener.accept()
            with connection:
                received = b""
                while b"\r\n\r\n" not in received and (more := connection.recv(65_536)):
                    received += more
                if not received:
                    return
                head, _, body = received.partition(b"\r\n\r\n")
                length = int(next((line[15:] for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"), b"0"))
                while len(body) < length:
                    body += connection.recv(65_536)
                self.requests.append(head)
                connection.sendall(reply)

    def close(self) -> None:
        """End the thread."""
        with socket.create_connection(self._listener.getsockname()[:2]) as last:
            last.shutdown(socket.SHUT_WR)
            self._thread.join(10)
        self._listener.close()


@contextmanager
def script(*answers: bytes) -> Iterator[Script]:
    server = Script(*answers)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Load one metric from a URL; return the result."""
    monkeypatch.setattr(sending, "BACKOFF_S", (0.01,))
    (tmp_path / "m.ndjson").write_text(json.dumps(METRIC))

    def run(url: str, *options: str, exit_code: int = 0) -> Any:
        return Console("").run(
            "load", str(tmp_path / "m.ndjson"), "--json", "--url", url, *options, exit_code=exit_code
        )

    return run


def http_date(seconds: float) -> str:
    """An HTTP date so many seconds from now."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "trouble",
    [
        b"",
        b"HTTP/1.1 2",
        b"nonsense\r\n\r\n",
        ok(length=1_000),
        answer("200 OK", "Transfer-Encoding: chunked", body=b'5\r\n{"mes\r\n')[:-1].replace(
            b"Content-Length: 10\r\n", b""
        ),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mes\r\nff\r\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        answer("200 OK", "Content-Encoding: gzip", body=b"no gzip"),
        answer("200 OK", "Content-Length: 7", body=b"{}"),
        answer("503 Service Unavailable"),
        answer("503 Service Unavailable", "Retry-After: 0"),
        answer("503 Service Unavailable", "Retry-After: soon"),
        answer("503 Service Unavailable", "Retry-After: -5"),
        answer("503 Service Unavailable", "Retry-After: nan"),
        answer("503 Service Unavailable", "Retry-After: \xb2"),
        answer("503 Service Unavailable", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"),
        answer("429 Too Many Requests", "Retry-After: Wed, 99 Foo 99999 99:99:99 GMT"),
        answer("502 \xe4\x1b[31m", "Retry-After:"),
        answer("504 Gateway Timeout", body=b"<html>"),
    ],
)
def test_trouble_is_retried(load: Callable[..., Any], trouble: bytes) -> None:
    with script(trouble, trouble, ok()) as server:
        assert json.loads(load(server.url).stdout)["stored"] == 1
        assert len(server.requests) == 3


def test_trouble_that_stays_is_reported_with_its_reason_when_the_time_is_over(load: Callable[..., Any]) -> None:
    for trouble, reason in ((ok(length=1_000), "IncompleteRead"), (answer("503 No"), "answers 503 No")):
        with script(trouble) as server:
            assert reason in load(server.url, "--retry-for", "0.1", exit_code=3).stderr


def test_retry_after_is_a_number_of_seconds_or_a_date() -> None:
    assert sending.retry_after_s({"Retry-After": "17"}) == 17
    assert sending.retry_after_s({"Retry-After": " 1.5 "}) == 1.5
    assert 58 < sending.retry_after_s({"Retry-After": http_date(60)}) <= 60
    server_is_an_hour_ahead = {"Retry-After": http_date(3630), "Date": http_date(3600)}
    assert 28 < sending.retry_after_s(server_is_an_hour_ahead) <= 31
    assert sending.retry_after_s({"Retry-After": http_date(-60)}) == 0
    assert sending.retry_after_s({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}) == 0
    assert sending.retry_after_s({"Retry-After": "9" * 9}) == sending.MAX_PAUSE_S
    for nonsense in (
        "",
        "inf",
        "1e9",
        "-1",
        "9" * 500,
        "\uff15",
        "Wed, 99 Foo 99999 99:99:99 GMT",
        "0x10",
        "x" * 9_999,
    ):
        assert sending.retry_after_s({"Retry-After": nonsense}) == 0


def test_retry_waits_as_long_as_a_date_says(load: Callable[..., Any]) -> None:
    began = time.monotonic()
    with script(answer("503 No", f"Retry-After: {http_date(3)}", f"Date: {http_date(2)}"), ok()) as server:
        load(server.url)
    assert 0.9 < time.monotonic() - began < 10


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect",
                                    "308 Permanent Redirect"])  # fmt: skip
def test_redirect_is_named_and_not_followed(load: Callable[..., Any], status: str) -> None:
    """Requests would send a GET there, whose answer 200 says nothing."""
    with script(ok()) as other, script(answer(status, f"Location: {other.url}")) as server:
        error = load(server.url, exit_code=1).stderr
        assert f"answers {status[:3]} with Location {other.url}: redirects are not followed, use that URL" in error
        assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize(
    "reply",
    [
        answer("200 OK", "Content-Type: text/html", body=b"<html>\x1b[31mlogin"),
        answer("204 No Content"),
        ok([]),
        ok({}),
        ok("text"),
        ok(REPORT | {"received": 2}),
        ok(REPORT | {"errors": None}),
        ok(REPORT | {"stored": "1"}),
        ok(REPORT | {"errors": [{"index": 0}]}),
        ok(REPORT | {"errors": [dict.fromkeys(sending.ERROR_FIELDS, None) | {"index": 1}]}),
        answer("200 OK", "Content-Type: application/json", body=b"[" * 100_000),
        answer("200 OK", "Content-Type: application/json", body=b"\xff"),
    ],
)
def test_success_without_a_report_is_an_error_that_says_so(load: Callable[..., Any], reply: bytes) -> None:
    with script(reply) as server:
        result = load(server.url, exit_code=1)
        assert "but not with a report; is it ingest_batch's URL?" in result.stderr
        assert "\x1b" not in result.output
        assert len(server.requests) == 1


def test_refusal_is_shown_with_its_detail(load: Callable[..., Any]) -> None:
    body = json.dumps({"detail": "no\x1b[31m such key"}).encode()
    with script(answer("401 Unauthorized", body=body)) as server:
        assert "answers 401 to" in (error := load(server.url, exit_code=1).stderr)
        assert "lines 1 to 1: no [31m such key" in error


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_netrc_does_not_take_the_place_of_the_api_key(load: Callable[..., Any], netrc: None) -> None:
    with script(ok()) as server:
        load(server.url, "--api-key", "mi_key")
        load(server.url)
        load(server.url.replace("//", "//me:pw@"))
        load(server.url.replace("//", "//me:pw@"), "--api-key", "mi_key")
        found = [
            [line[15:] for line in head.split(b"\r\n") if line.startswith(b"Authorization: ")]
            for head in server.requests
        ]
    assert found == [[b"Bearer mi_key"], [], [b"Basic bWU6cHc="], [b"Bearer mi_key"]]


def test_proxy_of_the_environment_is_used(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with script(ok()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        load("http://ingest.invalid/ingest_batch/")
        assert proxy.requests[0].startswith(b"POST http://ingest.invalid/ingest_batch/ HTTP/1.1")


@pytest.mark.parametrize("key", ["mi_secret\n", "mi_sec ret", "mi_sécret", "mi_\x7f"])
def test_api_key_that_no_header_can_hold_is_refused_and_not_shown(load: Callable[..., Any], key: str) -> None:
    result = load("http://127.0.0.1:1/", "--api-key", key, exit_code=2)
    assert "characters other than visible ASCII" in result.stderr
    assert "mi_" not in result.output


def test_password_in_the_url_is_not_shown(load: Callable[..., Any]) -> None:
    result = load("http://me:S3cr@t@127.0.0.1:1/x@y", "--retry-for", "0", exit_code=3)
    assert "cannot reach http://127.0.0.1:1/x@y: " in result.stderr
    assert "S3cr" not in result.output


@pytest.mark.parametrize("url", ["ftp://x/", "x", "http://", "http://[", "http://x:y/", "http://*/"])
def test_url_that_is_not_valid_is_no_reason_to_retry(load: Callable[..., Any], url: str) -> None:
    assert load(url, exit_code=1).stderr.startswith("Error: " + url.removesuffix("/"))


def test_answer_that_is_cut_in_its_middle_is_asked_for_again(
    stack: Stack, load: Callable[..., Any], tmp_path: Path
) -> None:
    """With the real function: the metric is stored, its report is lost, and the next one counts a duplicate."""
    (tmp_path / "m.ndjson").write_text(json.dumps(METRIC | {"user_id": stack.user()}))
    with Proxy(stack.ingest_batch.url) as proxy:
        proxy.cut_next_reply(after=150)
        counts = json.loads(load(f"{proxy.url}/ingest_batch/").stdout)
    assert counts == {"received": 1, "stored": 0, "duplicates": 1, "rejected": 0}
