"""Sends chunks of metrics to ingest_batch, several at a time, and retries while it or its database is unavailable."""

import gzip
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event, local
from typing import Any

import click

from metrics_ingest.admin.console import Unreachable
from metrics_ingest.admin.files import Chunk

CHUNKS_PER_REQUEST = 2  # chunks read ahead for each parallel request, so that memory is bounded
BACKOFF_S = (0.5, 1, 2, 5, 10)
RETRY_STATUSES = (429, 502, 503, 504)
TIMEOUT_S = 60

Report = dict[str, Any]  # the body of a reply of ingest_batch


class Sender:
    """Posts chunks, and retries each for `retry_for_s` seconds. Threads may share it."""

    def __init__(self, url: str, api_key: str | None, retry_for_s: float) -> None:
        try:
            import requests
        except ImportError:
            raise click.ClickException("`load` needs requests: pip install 'metrics-ingest[cli]'") from None
        self._requests = requests
        self._url = url
        self._headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retry_for_s = retry_for_s
        self._thread = local()  # a requests.Session must not be shared by threads
        self.stopped = Event()  # when it is set, `send` gives up instead of trying again

    def send(self, chunk: Chunk) -> Report:
        """Return the report. Raise ClickException for a final error, Unreachable when the time to retry is over."""
        body = gzip.compress(b"\n".join(chunk.metrics), compresslevel=1)
        headers = self._headers | {"Idempotency-Key": chunk.idempotency_key}
        deadline = time.monotonic() + self._retry_for_s
        for attempt in itertools.count():
            pause = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1)
            try:
                reply = self._session().post(self._url, data=body, headers=headers, timeout=TIMEOUT_S)
            except (self._requests.ConnectionError, self._requests.Timeout) as error:
                reason = f"cannot reach {self._url}: {getattr(error.args[0], 'reason', error)}"
            except self._requests.RequestException as error:
                raise click.ClickException(f"{self._url}: {error}") from error
            else:
                if reply.status_code not in RETRY_STATUSES:
                    return self._report(reply, chunk)
                reason = f"{self._url} answers {reply.status_code} {reply.reason}"
                pause = max(pause, float(reply.headers.get("Retry-After", "0") or 0))
            if time.monotonic() + pause > deadline:
                raise Unreachable(f"{reason}; run the command again to continue")
            if self.stopped.wait(pause):
                raise KeyboardInterrupt
        raise AssertionError("itertools.count ends never")

    def _session(self) -> Any:
        if not hasattr(self._thread, "session"):
            self._thread.session = self._requests.Session()
        return self._thread.session

    def _report(self, reply: Any, chunk: Chunk) -> Report:
        try:
            body = reply.json()
        except ValueError:
            body = {}
        if isinstance(body, dict) and "received" in body and "errors" in body:
            return body
        detail = body.get("detail", reply.reason) if isinstance(body, dict) else reply.reason
        lines = f"{chunk.file}, lines {chunk.lines[0]} to {chunk.lines[-1]}"
        raise click.ClickException(f"{self._url} answers {reply.status_code} to {lines}: {detail}")


def send_all(chunks: Iterable[Chunk], sender: Sender, parallel: int) -> Iterator[tuple[Chunk, Report]]:
    """Send the chunks, `parallel` at a time; yield each with its report, in order of completion."""
    with ThreadPoolExecutor(parallel) as pool:
        pending: dict[Future[Report], Chunk] = {}
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


def _completed(pending: dict[Future[Report], Chunk]) -> Iterator[tuple[Chunk, Report]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
