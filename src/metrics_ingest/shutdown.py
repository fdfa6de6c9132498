"""The deadline of a shutdown: what is in progress when SIGTERM arrives must end before SIGKILL."""

import asyncio
import math
import signal
import threading
from functools import cache
from types import FrameType

SHUTDOWN_S = 7.0  # Cloud Run sends SIGKILL ten seconds after SIGTERM


class ShutdownDeadline:
    """The time, on the event loop's clock, until which requests are served: SHUTDOWN_S after SIGTERM, else infinite."""

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
    """Return this process's deadline. Call this from a request, because the server sets its signal handlers first."""
    return ShutdownDeadline()
