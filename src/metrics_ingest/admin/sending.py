"""Sends chunks of metrics to ingest_batch, several at a time, and retries while it or its database is unavailable.

Nothing about the server is taken for granted: the URL may lead to a proxy, a load balancer, or another service.
"""

import gzip
import itertools
import json
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, local
from typing import Any

import click

from metrics_ingest.admin.console import Unreachable, printable
from metrics_ingest.admin.files import Chunk

CHUNKS_PER_REQUEST = 2  # chunks read ahead for each parallel request, so that memory is bounded
BACKOFF_S = (0.5, 1, 2, 5, 10)
RETRY_STATUSES = (429, 502, 503, 504)
REPORT_STATUSES = (200, 207, 422)
MAX_PAUSE_S = 3600  # of what a server asks for
TIMEOUT_S = 60
COUNTS = ("received", "stored", "duplicates", "rejected")  # received is the sum of the others
ERROR_FIELDS = {"index", "code", "field", "detail", "metric_id"}

BatchReport = dict[str, Any]  # the body of a reply of ingest_batch


class Sender:
    """Posts chunks, and retries each for `retry_for_s` seconds. Threads may share it."""

    def __init__(self, url: str, api_key: str | None, retry_for_s: float, users_url: str | None = None) -> None:
        """`users_url` is where users that nobody knows are registered; by default they are not.

        Raise ClickException without requests, UsageError for a key that is not visible ASCII.
        """
        try:
            import requests
            import urllib3
        except ImportError:
            raise click.ClickException("`load` needs requests: pip install 'metrics-ingest[cli]'") from None
        self._requests = requests
        self._errors = (requests.RequestException, urllib3.exceptions.HTTPError)  # requests passes some on
        self._misuse = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
                        requests.exceptions.MissingSchema)  # fmt: skip
        self._url = url
        self._users_url = users_url
        self._shown_url = _without_password(url)
        self._headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        if api_key:
            if not re.fullmatch(r"[!-~]+", api_key):
                raise click.UsageError("the API key has characters other than visible ASCII; has it a line break?")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retry_for_s = retry_for_s
        self._thread = local()  # a requests.Session must not be shared by threads
        self.stopped = Event()  # when it is set, `send` gives up instead of trying again

    def send(self, chunk: Chunk) -> BatchReport:
        """Return the report. Raise ClickException for a final error, Unreachable when the time to retry is over."""
        report = self._send(chunk)
        unknown = {error["index"] for error in report["errors"] if error["code"] == "unknown_user"}
        if not self._users_url or not unknown:
            return report
        self._register({json.loads(chunk.lines[index].metric)["user_id"] for index in unknown})
        again = self._send(chunk)  # what was stored a moment ago is now a duplicate
        again["stored"], again["duplicates"] = (
            report["stored"] + again["stored"],
            again["duplicates"] - report["stored"],
        )
        return again

    def _register(self, user_ids: Iterable[str]) -> None:
        """Register users by their ids. Raise ClickException."""
        users = [{"user_id": user_id, "name": user_id} for user_id in sorted(user_ids)]
        body = gzip.compress(json.dumps(users).encode(), compresslevel=1)
        reply = self._post(str(self._users_url), body, self._headers | {"Content-Type": "application/json"})
        if reply.status_code != 200:
            shown = _without_password(str(self._users_url))
            raise click.ClickException(f"{shown} answers {reply.status_code}: {_one_line(reply.text)}")

    def _send(self, chunk: Chunk) -> BatchReport:
        body = gzip.compress(b"\n".join(line.metric for line in chunk.lines), compresslevel=1)
        reply = self._post(self._url, body, self._headers | {"Idempotency-Key": chunk.idempotency_key})
        return self._report(reply, chunk)

    def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return the first reply that does not ask to try again. Raise ClickException, Unreachable."""
        shown_url = _without_password(url)
        deadline = time.monotonic() + self._retry_for_s
        for attempt in itertools.count():
            pause = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1)
            try:
                reply = self._session().post(url, data=body, headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
            except self._errors as error:
                if isinstance(error, self._misuse):
                    raise click.ClickException(f"{shown_url}: {_one_line(error)}") from error
                reason = f"cannot reach {shown_url}: {_cause(error)}"
            else:
                if reply.status_code not in RETRY_STATUSES:
                    return reply
                reason = f"{shown_url} answers {reply.status_code} {_one_line(reply.reason or '')}"
                pause = max(pause, retry_after_s(reply.headers))
            if time.monotonic() + pause > deadline:
                raise Unreachable(f"{reason}; run the command again to continue")
            if self.stopped.wait(pause):
                raise KeyboardInterrupt
        raise AssertionError("itertools.count ends never")

    def _session(self) -> Any:
        """Return the thread's session, which uses the environment's proxies and certificates, but not ~/.netrc."""
        if not hasattr(self._thread, "session"):
            session = self._thread.session = self._requests.Session()
            # Without an `auth` requests would replace the API key by the login that ~/.netrc has for the host.
            if "Authorization" in self._headers or self._shown_url == self._url:
                session.auth = lambda request: request
            else:
                session.auth = self._requests.utils.get_auth_from_url(self._url)
        return self._thread.session

    def _report(self, reply: Any, chunk: Chunk) -> BatchReport:
        answers = f"{self._shown_url} answers {reply.status_code}"
        if 300 <= reply.status_code < 400 and (location := _one_line(reply.headers.get("Location", ""))):
            raise click.ClickException(f"{answers} with Location {location}: redirects are not followed, use that URL")
        try:
            body = reply.json()
        except (ValueError, RecursionError):
            body = None
        if reply.status_code in REPORT_STATUSES and _is_report(body, len(chunk.lines)):
            return dict(body)
        if reply.status_code < 300:
            start = _one_line(reply.text[:100])
            raise click.ClickException(f"{answers}, but not with a report; is it ingest_batch's URL? It says: {start}")
        detail = _one_line(body.get("detail", reply.reason) if isinstance(body, dict) else reply.reason)
        lines = f"{chunk.file}, lines {chunk.lines[0].number} to {chunk.lines[-1].number}"
        raise click.ClickException(f"{answers} to {lines}: {detail}")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return for how many seconds Retry-After (RFC 9110, 10.2.3) asks to wait; 0 if it is absent or not valid.

    A date is compared with the server's own Date, because the clocks may differ.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text, re.ASCII):
        seconds = float(text)
    elif at := _http_date(text):
        seconds = (at - (_http_date(headers.get("Date", "")) or datetime.now(UTC))).total_seconds()
    else:
        seconds = 0
    return min(max(seconds, 0), MAX_PAUSE_S)


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _is_report(body: Any, sent: int) -> bool:
    """Return whether this is a report of ingest_batch about so many metrics."""
    if not isinstance(body, dict) or not all(type(body.get(name)) is int for name in COUNTS):
        return False
    errors = body.get("errors")
    return (
        body["received"] == sent
        and isinstance(errors, list)
        and all(
            isinstance(error, dict) and error.keys() >= ERROR_FIELDS and error["index"] in range(sent)
            for error in errors
        )
    )


def _cause(error: Exception) -> str:
    """Return what happened to a request, without the layers of urllib3 around it."""
    first = error.args[0] if error.args else error
    return _one_line(getattr(first, "reason", first))


def _one_line(value: object) -> str:
    """Return what a server sent, or an error that quotes it, as one short line that cannot change the terminal."""
    return printable(str(value)[:300])


def _without_password(url: str) -> str:
    """Return the URL without the user and password that it may have."""
    start, separator, rest = url.partition("//")
    authority, slash, path = rest.partition("/")
    return start + separator + authority.rpartition("@")[2] + slash + path


def send_all(chunks: Iterable[Chunk], sender: Sender, parallel: int) -> Iterator[tuple[Chunk, BatchReport]]:
    """Send the chunks, `parallel` at a time; yield each with its report, in order of completion."""
    with ThreadPoolExecutor(parallel) as pool:
        pending: dict[Future[BatchReport], Chunk] = {}
        try:
            for chunk in chunks:
                pending[pool.submit(sender.send, chunk)] = chunk
                if len(pending) >= parallel * CHUNKS_PER_REQUEST:
                    yield from _completed(pending)
            while pending:
                yield from _completed(pending)
        finally:  # after an error: start no more, but wait for those that were sent, so that their outcome is known
            sender.stopped.set()
            pool.shutdown(cancel_futures=True)


def _completed(pending: dict[Future[BatchReport], Chunk]) -> Iterator[tuple[Chunk, BatchReport]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
