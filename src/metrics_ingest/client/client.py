"""A client that records metrics in memory, and a thread that delivers each of them exactly once."""

import json
import logging
import math
import random
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import requests

from metrics_ingest.client import process
from metrics_ingest.client.transport import post

logger = logging.getLogger(__name__)

BACKOFF_LIMIT_S = 60.0


class Line(NamedTuple):
    """A recorded metric: its number, counted from 1 in this client, and the JSON that is sent."""

    number: int
    json: str


class Client:
    """Records metrics in memory and sends them in batches from a thread of its own. Every thread may use it.

    `record` never waits for the network. At the end of the process `close` is called, which waits up to `exit_s`
    seconds for what is queued; a process that is killed loses it. After a fork the child begins with an empty queue,
    because the parent still sends what it recorded.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        user_id: object = None,
        session_id: object = None,
        flush_s: float = 5,
        max_batch: int = 500,
        max_queue: int = 10_000,
        exit_s: float = 10,
        on_rejected: Callable[[dict[str, Any]], object] | None = None,
        on_dropped: Callable[[int], object] | None = None,
        exit_on_sigterm: bool = True,
    ) -> None:
        """Make a client for the functions at `url`, such as `http://localhost:8000`. No request is made yet.

        on_rejected: gets `code`, `field`, `detail` and `metric` of a metric that was rejected. `metric` is None when
        the whole request was refused, for example because of the key; the client then keeps its queue and stops.
        on_dropped: gets how many metrics were dropped, because more than `max_queue` waited (the oldest are dropped) or
        because `close` had no more time. Both log a warning by default; they are called in the client's thread, or in
        the one that called `record` or `close`.
        exit_on_sigterm: while SIGTERM has its default action, which ends the process at once, replace it by
        `sys.exit(143)`, so that the queue is sent first.
        """
        self._url = url.rstrip("/") + "/ingest_batch/"
        self._headers = {"Content-Type": "application/x-ndjson", **({"X-API-Key": key} if key else {})}
        self._defaults = {"user_id": user_id, "session_id": session_id}
        self._flush_s, self._exit_s = flush_s, exit_s
        self._max_batch, self._max_queue = max_batch, max_queue
        self._on_rejected = on_rejected or (lambda rejection: logger.warning("metric rejected: %s", rejection))
        self._on_dropped = on_dropped or (lambda count: logger.warning("%d metrics dropped", count))
        self._closed = self._stopped = False
        self.after_fork()
        process.follow(self)
        if exit_on_sigterm:
            process.exit_on_sigterm()

    def after_fork(self) -> None:
        """Begin with an empty queue, no thread and a lock that nobody holds."""
        self._changed = threading.Condition()
        self._queue: deque[Line] = deque()
        self._sending: list[Line] = []  # the oldest; the thread's, so they are never dropped while they are under way
        self._thread: threading.Thread | None = None
        self._recorded = self._flush_to = 0
        self._due = self._deadline = math.inf  # monotonic: when to send, and when to give up because of close()

    def record(
        self,
        metric_type: str,
        value: float,
        *,
        timestamp: datetime | None = None,
        user_id: object = None,
        session_id: object = None,
    ) -> str:
        """Queue a metric of this moment, or of `timestamp`, and return its metric_id.

        Raise ValueError or TypeError when it cannot be a metric: a value that is no finite number, a timestamp without
        a time zone, no user_id here nor in the client; RuntimeError when the client is closed.
        """
        number = value if isinstance(value, bool | int) else float(value)
        if not -sys.float_info.max <= number <= sys.float_info.max:  # NaN is not, either
            raise ValueError(f"value must be finite, got {value!r}")
        if timestamp is not None and timestamp.tzinfo is None:
            raise ValueError("timestamp must have a time zone")
        user_id, session_id = user_id or self._defaults["user_id"], session_id or self._defaults["session_id"]
        if user_id is None:
            raise ValueError("user_id is missing; give it to record() or to the client")
        metric_id = str(uuid.uuid4())
        metric: dict[str, object] = {
            "user_id": str(user_id),
            "metric_type": metric_type,
            "value": number,
            "timestamp": (timestamp or datetime.now(UTC)).isoformat(),
            "metric_id": metric_id,
        }
        if session_id is not None:
            metric["session_id"] = str(session_id)
        text = json.dumps(metric)
        dropped = 0
        with self._changed:
            if self._closed:
                raise RuntimeError("the client is closed")
            self._recorded += 1
            self._queue.append(Line(self._recorded, text))
            while self._queue and len(self._sending) + len(self._queue) > self._max_queue:
                self._queue.popleft()
                dropped += 1
            self._due = min(self._due, time.monotonic() + self._flush_s)
            if len(self._queue) in (1, self._max_batch):
                self._changed.notify_all()
            if self._thread is None:
                self._start()
        if dropped:
            self._call(self._on_dropped, dropped)
        return metric_id

    def flush(self, timeout_s: float | None = None) -> bool:
        """Send what was recorded until now; return whether all of it was answered within the time."""
        if threading.current_thread() is self._thread:
            return False  # a callback cannot wait for the thread that it runs in
        with self._changed:
            last = self._flush_to = self._recorded
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._oldest() > last or self._stopped, timeout_s)
            return self._oldest() > last

    def close(self, timeout_s: float | None = None) -> bool:
        """Send what is queued, for at most `timeout_s` seconds (default: `exit_s`); return whether nothing is left."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._deadline = time.monotonic() + (self._exit_s if timeout_s is None else timeout_s)
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self._run()  # because no thread can be started while the interpreter shuts down
        elif thread is not threading.current_thread():
            thread.join(max(0, self._deadline - time.monotonic()) + 1)
        with self._changed:
            left = len(self._sending) + len(self._queue)
            self._sending = []  # not cleared, because the thread may still read the list
            self._queue.clear()
        if left:
            self._call(self._on_dropped, left)
        return not left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _oldest(self) -> float:
        """The number of the oldest metric that is not answered."""
        return next((lines[0].number for lines in (self._sending, self._queue) if lines), math.inf)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="metrics-ingest", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return
        self._thread = thread
        process.follow_child()

    def _run(self) -> None:
        """Send until the client is closed, and nothing is left or the time is up."""
        failures = 0
        limit = self._max_batch
        with requests.Session() as session:
            while self._take(limit):
                batch = self._sending
                left_s = max(0.1, self._deadline - time.monotonic())
                answer = post(session, self._url, self._headers, [line.json for line in batch], left_s)
                if answer.accounts_for(len(batch)) and answer.lists_all_errors:
                    failures = 0
                    self._settle(batch, answer.report["errors"])
                elif answer.accounts_for(len(batch)):  # which were rejected is not known: send fewer, again
                    limit = (len(batch) + 1) // 2
                    self._pause(random.uniform(1, 2))
                elif answer.status == 413 and len(batch) > 1:
                    limit = (len(batch) + 1) // 2
                    self._put_back(limit)
                elif answer.status == 413:
                    self._settle(batch, [{"code": "payload_too_large", **answer.report, "index": 0}])
                elif answer.is_final:
                    self._stop({"code": f"http_{answer.status}", **answer.report, "metric": None})
                else:
                    wait_s = answer.retry_after_s or min(2.0**failures, BACKOFF_LIMIT_S)
                    self._pause(wait_s * random.uniform(1, 2))
                    failures = min(failures + 1, 10)

    def _take(self, limit: int) -> bool:
        """Wait until there is something to send; return whether there is."""
        with self._changed:
            while True:
                now = time.monotonic()
                if now >= self._deadline or (self._closed and (self._stopped or self._oldest() == math.inf)):
                    return False
                if self._stopped:
                    self._changed.wait()
                    continue
                if self._sending:
                    return True
                wanted = self._closed or len(self._queue) >= limit or self._oldest() <= self._flush_to
                if self._queue and (wanted or now >= self._due):
                    self._sending = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
                    self._due = now + self._flush_s if self._queue else math.inf
                    return True
                self._changed.wait(None if self._due == math.inf else self._due - now)

    def _settle(self, batch: list[Line], errors: list[dict[str, Any]]) -> None:
        """Forget what was sent, and report once each metric of it that was rejected."""
        with self._changed:
            self._sending = []
            self._changed.notify_all()
        first = {error["index"]: error for error in reversed(errors)}
        for index in sorted(first):
            self._call(self._on_rejected, {**first[index], "metric": json.loads(batch[index].json)})

    def _put_back(self, keep: int) -> None:
        with self._changed:
            self._queue.extendleft(reversed(self._sending[keep:]))
            del self._sending[keep:]

    def _stop(self, rejection: dict[str, Any]) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._call(self._on_rejected, rejection)

    def _pause(self, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        with self._changed:
            while (now := time.monotonic()) < min(end, self._deadline):
                self._changed.wait(min(end, self._deadline) - now)

    @staticmethod
    def _call(callback: Callable[[Any], object], argument: object) -> None:
        try:
            callback(argument)
        except Exception:  # the caller's own code must not end the thread
            logger.exception("a callback failed")
