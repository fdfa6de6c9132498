"""The deadline of a process that is shutting down: what is in progress at SIGTERM must be answered in time."""

import asyncio
import math
import signal
import threading
from functools import cache
from types import FrameType

SHUTDOWN_S = 7.0  # Cloud Run sends SIGKILL ten seconds after SIGTERM


class ShutdownDeadline:
    """`until` is when requests must be answered, in the loop's time: infinity, and SHUTDOWN_S after SIGTERM."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.until = math.inf
        server = signal.getsignal(signal.SIGTERM)
        if callable(server) and threading.current_thread() is threading.main_thread():

            def begin(number: int, frame: FrameType | None) -> None:
                self.until = min(self.until, self._loop.time() + SHUTDOWN_S)
                server(number, frame)  # the server closes its listeners, and exits when everything is answered

            signal.signal(signal.SIGTERM, begin)


@cache
def shutdown_deadline() -> ShutdownDeadline:
    """This process's deadline, made by its first request, because by then the server has installed its handlers."""
    return ShutdownDeadline()
