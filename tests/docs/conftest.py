"""`make run` in a fresh checkout, for the tests of the documents."""

import subprocess
from collections.abc import Iterator

import pytest

from support.documents import README, Checkout, blocks
from support.processes import BIN, ROOT, Server, free_port


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The repository as a newcomer has it, but with the environment that is installed already, and `make run` in it."""
    directory = tmp_path_factory.mktemp("clone")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())
    (directory / ".venv").symlink_to(BIN.parent)
    (BIN.parent / "installed").touch()  # newer than the copies, so that `make` does not install again
    port = free_port()
    server = Server(["make", "--no-print-directory", "-C", str(directory), "run", f"PORT={port}"], {}, port)
    server.wait_until_ready(60)
    yield Checkout(directory, port, server)
    Checkout.end(server)


@pytest.fixture(scope="session")
def registered(running: Checkout) -> Checkout:
    """The same, after the quick start has registered its user."""
    running.shell(blocks(README)[1])
    return running
