"""How long things may take that others decide: a body to arrive, and all that is under way when SIGTERM comes.

One timer serves all requests: one for each would be paid by every request, for the few that need it.
"""

import asyncio
import math
import signal
import threading
from functools import cache
from types import FrameType

BODY_TIMEOUT_S = 10.0  # for the first byte to the last, and a second more ...
BODY_RATE = 100_000  # ... for each so many bytes that have come
DRAIN_S = 7.0  # Cloud Run kills ten seconds after SIGTERM
SWEEP_S = 0.5


class Drain:
    """Until when this process may work, in the loop's time: for ever, and from SIGTERM on DRAIN_S more."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.until = math.inf
        server = signal.getsignal(signal.SIGTERM)
        if callable(server) and threading.current_thread() is threading.main_thread():

            def begin(number: int, frame: FrameType | None) -> None:
                self.until = min(self.until, self._loop.time() + DRAIN_S)
                server(number, frame)  # the server closes its listeners, and ends when all is answered

            signal.signal(signal.SIGTERM, begin)


@cache
def drain() -> Drain:
    """This process's, made by its first request: the server has taken the signals over by then."""
    return Drain()


class Arrivals:
    """The requests whose bodies are still arriving. One that takes too long is cancelled, and `end` says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._drain = drain()
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
            if min(deadline, self._drain.until) <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweep_planned = bool(self._deadlines)
        if self._sweep_planned:
            self._loop.call_later(SWEEP_S, self._sweep)
