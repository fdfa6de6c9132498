"""Until when this process may work: all that is in progress when SIGTERM comes must end in time."""

import asyncio
import math
import signal
import threading
from functools import cache
from types import FrameType

SHUTDOWN_S = 7.0  # Cloud Run sends SIGKILL ten seconds after SIGTERM


class ShutdownDeadline:
    """Until when this process may work, in the loop's time: for ever, and from SIGTERM on SHUTDOWN_S more."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.until = math.inf
        server = signal.getsignal(signal.SIGTERM)
        if callable(server) and threading.current_thread() is threading.main_thread():

            def begin(number: int, frame: FrameType | None) -> None:
                self.until = min(self.until, self._loop.time() + SHUTDOWN_S)
                server(number, frame)  # the server closes its listeners, and ends when all is answered

            signal.signal(signal.SIGTERM, begin)


@cache
def shutdown_deadline() -> ShutdownDeadline:
    """This process's, made by its first request: the server has taken the signals over by then."""
    return ShutdownDeadline()
