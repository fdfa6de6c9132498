"""A PostgreSQL for tests that kill it; it writes as safely as in production."""

import os
import signal
import subprocess
from contextlib import suppress

import pg8000.native
import psutil

from support.processes import Postgres, connected, eventually


class Mortal(Postgres):
    """The postmaster is a child of the test process, so that a kill can be waited for."""

    _process: subprocess.Popen[bytes] | None = None
    _family: tuple[psutil.Process, ...] = ()

    def __init__(self) -> None:
        # syncfs: after a crash one sync of the file system instead of one fsync a file. As safe, and faster.
        super().__init__(fsync="on", max_connections="30", recovery_init_sync_method="syncfs")

    def start(self) -> None:
        """Start it, and return as soon as it answers."""
        info = self.server.get_postmaster_info()
        command = [self.server.bin_path / "postgres", "-D", self.server.pgdata, "-h", "", "-k", info.socket_dir]
        with self.server.log.open("ab") as log:
            user = self.server.system_user  # PostgreSQL does not run as root
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=user, group=user)
        eventually(self.answers, 60)

    def stop(self) -> None:
        """Stop it in fast mode."""
        if self._process is None:
            super().stop()
        else:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def kill(self) -> None:
        """SIGKILL all of its processes: to them this is a power failure."""
        self._signal(signal.SIGKILL)
        assert self._process
        self._process.wait(10)
        eventually(lambda: not any(map(_runs, self._family)))

    def pause(self) -> None:
        """SIGSTOP all of its processes: the kernel accepts connections, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        for process in self._family:
            process.send_signal(signal.SIGCONT)

    def revive(self) -> None:
        """Start it unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        self._directory.cleanup()

    def answers(self) -> bool:
        """Whether it accepts connections at this moment."""
        try:
            with connected(self.url(), 1):
                return True
        except (pg8000.native.DatabaseError, pg8000.native.InterfaceError, OSError):
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        postmaster = psutil.Process(self._process.pid)
        self._family = (postmaster, *postmaster.children())
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_root() -> bool:
    """Whether the tests may do what only root may."""
    return os.geteuid() == 0
