"""The emulator (`make run`) as a process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import Server, free_port

COMMAND = (sys.executable, "-m", "metrics_ingest.local.emulator")


@contextmanager
def emulator(directory: Path | None = None, /, **environment: str) -> Iterator[Server]:
    """Run the emulator until the block ends. Without DATABASE_URL its data is in `directory`/.local."""
    port = int(environment.setdefault("PORT", str(free_port())))
    server = Server([*COMMAND], environment, port, directory)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def failed_start(directory: Path | None = None, /, **environment: str) -> str:
    """Start the emulator, which must end with exit code 1 and a single line on standard error; return the line."""
    environment.setdefault("PORT", str(free_port()))
    done = subprocess.run(
        COMMAND,
        cwd=directory,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line
