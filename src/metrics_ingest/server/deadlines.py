"""How long things may take that others decide: a body to arrive, and all that is under way when SIGTERM comes.

One timer serves all requests: one for each would be paid by every request, for the few that need it.
"""

import asyncio

from metrics_ingest.shutdown import shutdown_deadline

BODY_TIMEOUT_S = 10.0  # for the first byte to the last, and a second more ...
BODY_RATE = 100_000  # ... for each so many bytes that have come
SWEEP_S = 0.5


class Arrivals:
    """The requests whose bodies are still arriving. One that takes too long is cancelled, and `end` says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._shutdown = shutdown_deadline()
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._sweep_planned = False

    def begin(self) -> asyncio.Task[object]:
        """This task waits for a body from now on; return it."""
        task = asyncio.current_task()
        assert task is not None
        self._deadlines[task] = self._loop.time() + BODY_TIMEOUT_S
        if not self._sweep_planned:
            self._sweep_planned = True
            self._loop.call_later(SWEEP_S, self._sweep)
        return task

    def received(self, size: int) -> None:
        """So many more bytes have come for this task."""
        task = asyncio.current_task()
        assert task is not None
        self._deadlines[task] += size / BODY_RATE

    def end(self, task: asyncio.Task[object]) -> bool:
        """The task waits no more; whether it was cancelled for being late."""
        del self._deadlines[task]
        if task not in self._late:
            return False
        self._late.remove(task)
        task.uncancel()
        return True

    def _sweep(self) -> None:
        now = self._loop.time()
        for task, deadline in self._deadlines.items():
            if min(deadline, self._shutdown.until) <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweep_planned = bool(self._deadlines)
        if self._sweep_planned:
            self._loop.call_later(SWEEP_S, self._sweep)
