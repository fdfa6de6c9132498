"""A PostgreSQL that is there to be killed, and that writes as safely as in production."""

import os
import signal
import subprocess
from contextlib import suppress

import psutil

from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.processes import Postgres, eventually


class Mortal(Postgres):
    """It runs as a child of the test's own, so that it is gone as soon as it is killed."""

    _process: subprocess.Popen[bytes] | None = None
    _family: tuple[psutil.Process, ...] = ()

    def __init__(self) -> None:
        # Not to call fsync on each file of the data after a crash, but once on the file system, is as safe, and faster.
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
        """SIGKILL to all of it: a power failure, as far as its processes can tell."""
        self._signal(signal.SIGKILL)
        assert self._process
        self._process.wait(10)
        eventually(lambda: not any(map(_runs, self._family)))

    def pause(self) -> None:
        """SIGSTOP to all of it: connections are accepted by the kernel, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        for process in self._family:
            process.send_signal(signal.SIGCONT)

    def revive(self) -> None:
        """Make sure that it runs."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def close(self) -> None:
        """End it and remove its data; they need no orderly shutdown."""
        self.kill()
        self._directory.cleanup()

    def answers(self) -> bool:
        """Whether it takes connections at this moment."""
        try:
            connection = connect(read_database({"DATABASE_URL": self.url()}), 1)
        except Exception:  # noqa: BLE001  # whatever it is
            return False
        connection.close()
        return True

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
