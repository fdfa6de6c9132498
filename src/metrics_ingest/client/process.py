"""What happens to clients when their process ends or forks."""

import atexit
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import weakref
from typing import Protocol


class Owner(Protocol):
    """What a client does at the end of its process, and in the child after a fork."""

    def close(self) -> bool:
        """Send what is queued."""

    def after_fork(self) -> None:
        """Begin anew."""


_owners: "weakref.WeakSet[Owner]" = weakref.WeakSet()
_is_closing = threading.Event()


def follow(owner: Owner) -> None:
    """Tell the owner of the end of the process and of forks."""
    _owners.add(owner)


def follow_child() -> None:
    """Close all owners at the end of a multiprocessing child, which ends without atexit."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _close_all, exitpriority=0)


def exit_on_sigterm() -> None:
    """Make SIGTERM end the process by SystemExit, so that atexit runs; a handler that is set already stays."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(*_: object) -> None:
    """Handle SIGTERM. A second one, such as Pool.terminate sends, must not interrupt the closing."""
    if not _is_closing.is_set():
        sys.exit(128 + signal.SIGTERM)


@atexit.register
def _close_all() -> None:
    _is_closing.set()
    for owner in list(_owners):
        owner.close()


def _after_fork() -> None:
    _is_closing.clear()
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
