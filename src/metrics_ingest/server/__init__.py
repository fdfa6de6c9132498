"""What is changed in uvicorn and the garbage collector, in one explicit call; and deadlines for slow clients.

Importing this package, or any other of metrics_ingest, changes nothing.
"""

import gc
from contextlib import suppress

GC_THRESHOLD = 50_000  # Python's own: 700, in 3.12 and later 2,000


def install(server: str | None = None) -> None:
    """Change uvicorn and the process. Each function's main.py calls this before its other imports.

    The figures are from docs/benchmarks.md. With `server` "stock" (by default the setting SERVER) only the first change
    is made. The dashboard passes it, because it must start without the settings of those who write.

    - A high garbage collection threshold, and gc.freeze at the first request (http/service.py). Reason:
      objects here are freed by reference counting; cyclic collection only adds latency. Worth: a third less server CPU,
      p99 43 to 15 ms; 20 ms of the start. Can go when CPython collects without traversing all requests in flight.
    - accepting.py: 16 connections are accepted per turn of the event loop. Reason: uvloop accepts one. Worth: p99 of
      1,000 connections at once 1.9 to 0.2 s. Can go when uvloop is built with libuv 1.45 or later.
    - protocol.py: a limit on the head of a request and on pipelined requests. Reason: uvicorn with httptools has
      neither, so that one connection can fill the memory. Can go when uvicorn has both.
    - protocol.py: no middleware for POST. Reason: functions-framework puts eight layers around a function, which needs
      none. Worth: 98 to 74 µs of server CPU per request. Can go when functions-framework can leave them out.
    - protocol.py: a reply in one write; a body that has arrived is not waited for. Reason: uvicorn writes head and body
      apart. Worth: 10 to 15 µs per request. Can go when uvicorn writes them together.

    Raise SystemExit if a setting is wrong.
    """
    gc.set_threshold(GC_THRESHOLD)
    if server is None:
        from metrics_ingest.settings import settings

        server = settings().server
    if server == "stock":
        return
    from metrics_ingest.server import accepting

    accepting.install()
    with suppress(ImportError):  # without httptools (on Windows) uvicorn uses h11, which has limits of its own
        from metrics_ingest.server import protocol

        protocol.install()
