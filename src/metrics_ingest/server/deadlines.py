"""Deadlines for request bodies: how long a client may take to send one, also during shutdown.

One timer serves all requests, because a timer per request would cost every request what few need.
"""

import asyncio
from collections.abc import Awaitable
from functools import cache

from metrics_ingest.shutdown import shutdown_deadline

BODY_TIMEOUT_S = 10.0  # for a whole body, ...
BYTES_PER_EXTRA_S = 100_000  # ... and a second more for each so many bytes that have arrived
SWEEP_S = 0.5


class BodyDeadlines:
    """The deadlines of all tasks that receive a body. A sweep cancels the late ones."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._shutdown = shutdown_deadline()
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._sweep_planned = False

    async def wait(self, receiving: Awaitable[bytes]) -> bytes:
        """Return the body that `receiving` returns. Raise TimeoutError after the deadline, which `extend` moves."""
        task = _current_task()
        self._deadlines[task] = self._loop.time() + BODY_TIMEOUT_S
        if not self._sweep_planned:
            self._sweep_planned = True
            self._loop.call_later(SWEEP_S, self._sweep)
        try:
            return await receiving
        finally:
            del self._deadlines[task]
            if task in self._late:
                self._late.remove(task)
                task.uncancel()
                raise TimeoutError

    def extend(self, size: int) -> None:
        """Move the current task's deadline, because `size` more bytes have arrived for it."""
        self._deadlines[_current_task()] += size / BYTES_PER_EXTRA_S

    def _sweep(self) -> None:
        now = self._loop.time()
        for task, deadline in self._deadlines.items():
            if min(deadline, self._shutdown.until) <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweep_planned = bool(self._deadlines)
        if self._sweep_planned:
            self._loop.call_later(SWEEP_S, self._sweep)


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


@cache
def body_deadlines() -> BodyDeadlines:
    """Return the deadlines of this process. Call this from a request, because they belong to the running loop."""
    return BodyDeadlines()
