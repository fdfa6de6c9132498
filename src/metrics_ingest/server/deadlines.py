"""Deadlines for request bodies: how long a client may take to send one, also during shutdown.

One timer serves all requests, because a timer per request would cost every request what few need.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

from metrics_ingest.errors import Overloaded
from metrics_ingest.shutdown import shutdown_deadline

BODY_TIMEOUT_S = 10.0  # from the start, and always at most from now: a client that sends nothing has no more
BYTES_PER_EXTRA_S = 100_000  # a second more for each so many bytes that have arrived
SLOW_S = 2.0  # a body that is so far behind this pace is dropped when another one needs its memory
SWEEP_S = 0.5


@dataclass(slots=True, eq=False)
class _Arrival:
    """A body that is being received."""

    deadline: float
    give_back: Callable[[], None]
    ended_by: type[Exception] | None = None


class BodyDeadlines:
    """The deadlines of all tasks that receive a body. A sweep cancels the late ones."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._shutdown = shutdown_deadline()
        self._arrivals: dict[asyncio.Task[object], _Arrival] = {}
        self._sweep_planned = False

    async def wait(self, receiving: Awaitable[bytes], give_back: Callable[[], None]) -> bytes:
        """Return the body that `receiving` returns. Raise TimeoutError after the deadline, which `extend` moves.

        Raise Overloaded when `drop_slowest` has chosen it; `give_back` is called at that moment, to free its memory.
        """
        task = _current_task()
        arrival = self._arrivals[task] = _Arrival(self._loop.time() + BODY_TIMEOUT_S, give_back)
        if not self._sweep_planned:
            self._sweep_planned = True
            self._loop.call_later(SWEEP_S, self._sweep)
        try:
            return await receiving
        finally:
            del self._arrivals[task]
            if arrival.ended_by:
                task.uncancel()
                raise arrival.ended_by

    def extend(self, size: int) -> None:
        """Move the current task's deadline, because `size` more bytes have arrived for it."""
        arrival = self._arrivals[_current_task()]
        latest = self._loop.time() + BODY_TIMEOUT_S
        arrival.deadline = min(arrival.deadline + size / BYTES_PER_EXTRA_S, latest)

    def drop_slowest(self) -> bool:
        """End the body that is most behind the pace, except the current task's. Return whether there was one."""
        current = asyncio.current_task()
        others = [task for task, arrival in self._arrivals.items() if task is not current and not arrival.ended_by]
        slowest = min(others, key=lambda task: self._arrivals[task].deadline, default=None)
        if slowest is None or self._arrivals[slowest].deadline > self._loop.time() + BODY_TIMEOUT_S - SLOW_S:
            return False
        self._end(slowest, Overloaded)
        return True

    def _end(self, task: asyncio.Task[object], error: type[Exception]) -> None:
        arrival = self._arrivals[task]
        arrival.ended_by = error
        arrival.give_back()
        task.cancel()

    def _sweep(self) -> None:
        now = self._loop.time()
        for task, arrival in self._arrivals.items():
            if min(arrival.deadline, self._shutdown.until) <= now and not arrival.ended_by:
                self._end(task, TimeoutError)
        self._sweep_planned = bool(self._arrivals)
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
