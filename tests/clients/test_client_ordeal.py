"""Python programs record 2,000 metrics while everything fails in turn: each is stored once, or reported once."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.browsers import User
from clients.restartable import running
from support.processes import Postgres, eventually

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys, threading, time
from metrics_ingest.client import Client

url, user_id, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = Client(url, user_id=user_id, flush_s=0.2, max_batch=50, exit_s=60,
                on_rejected=lambda rejection: print(rejection["metric"]["value"], flush=True))

def work(first):
    for value in range(first, first + 125):
        client.record("talked_time", value)
        if value and value % 25 == 0:
            client.record("talked_time", -value)
        time.sleep(0.04)

def two_threads(first):
    threads = [threading.Thread(target=work, args=(start,)) for start in (first, first + 125)]
    for thread in threads:
        thread.start()
    return threads

threads = two_threads(first)
time.sleep(1)
if (child := os.fork()) == 0:
    threads = two_threads(first + 250)
    for thread in threads:
        thread.join()
    time.sleep(60)  # until SIGTERM
for thread in threads:
    thread.join()
print("recorded", child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that the test restarts."""
    server = Postgres()
    yield server
    server.close()


def start(url: str, user: User, first: int, output: Path) -> subprocess.Popen[bytes]:
    """Start a program; it and its child record 250 values each, from `first` on."""
    with output.open("w") as stdout:
        command = [sys.executable, "-W", "error", "-c", PROGRAM, url, user.id, str(first)]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT)


def child_of(output: Path) -> str:
    """Wait until a program has recorded everything; return its child's process id."""
    return str(eventually(lambda: re.findall(r"recorded (\d+)", output.read_text()), 30)[0])


def test_nothing_is_lost_through_kills_database_restarts_forks_and_sigterm(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    url = own_postgres.clone()
    user = User(url)
    outputs = [tmp_path / f"{number}.txt" for number in range(4)]
    with running(url) as function:
        programs = [start(function.server.url, user, 500 * n, output) for n, output in enumerate(outputs)]
        for _ in range(2):
            time.sleep(1)
            function.kill()
            time.sleep(0.5)
            function.start()
            time.sleep(1)
            own_postgres.restart()
        time.sleep(2)
        function.kill()
        for program, output in zip(programs, outputs, strict=True):  # both processes end while the function is away
            child = child_of(output)
            time.sleep(0.5)
            subprocess.run(["kill", "-TERM", child, str(program.pid)], check=True)
        time.sleep(1)
        function.start()
        assert [program.wait(90) for program in programs] == [143] * 4
        eventually(lambda: len(user.values) >= 2000, 60)
    printed = "".join(output.read_text() for output in outputs)
    assert user.values == list(range(2000))
    assert sorted(map(float, re.findall(r"-\d+", printed))) == sorted(-value for value in range(25, 2000, 25))
    assert "Traceback" not in printed
