"""How much memory a process uses, from /proc (Linux)."""

from pathlib import Path

import pytest

from support.processes import Server

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


def peak_bytes(pid: int) -> int:
    """Return the largest resident size of the process so far (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def resident_bytes(server: Server) -> int:
    """Return the resident size of all workers of a server together."""
    return sum(worker.memory_info().rss for worker in server.workers)


class Peak:
    """The growth of a server's one worker since this object was made: its peak is reset then."""

    def __init__(self, server: Server) -> None:
        (worker,) = server.workers
        self._pid = worker.pid
        with open(f"/proc/{self._pid}/clear_refs", "w") as reset:  # noqa: PTH123  # the kernel's, not a file to replace
            reset.write("5")
        self._before = resident_bytes(server)

    @property
    def growth(self) -> int:
        """In bytes."""
        return peak_bytes(self._pid) - self._before
