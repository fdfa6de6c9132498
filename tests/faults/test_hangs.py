"""The database or the network does not answer in time: 503 within WRITE_TIMEOUT_S, and success once it does again."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pg8000.native
import pytest
import requests

from faults.load import Answer, Load, post_all
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.metrics import metric, register
from support.mortal import Mortal, is_root
from support.processes import Server, eventually, function, query
from support.proxy import Proxy

pytestmark = pytest.mark.slow

WRITE_TIMEOUT_S = 1.5


@dataclass
class Line:
    """A database, a proxy in front of it, and functions that reach the database through the proxy."""

    url: str
    user_id: str
    proxy: Proxy
    ingest: Server
    ingest_batch: Server
    patient: Server  # ingest again, with more time than any fault below takes

    @property
    def name(self) -> str:
        """The database's name."""
        return read_database({"DATABASE_URL": self.url}).database

    def send(self, count: int = 10) -> list[Answer]:
        """Send `count` metrics at once."""
        return post_all(self.ingest.port, "/ingest/", [metric(self.user_id) for _ in range(count)])


@pytest.fixture(scope="module")
def line(mortal_server: Mortal) -> Iterator[Line]:
    url = mortal_server.clone()
    patience = {"WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S)}
    with (
        Proxy(url) as proxy,
        function("ingest", proxy.url, **patience) as ingest,
        function("ingest_batch", proxy.url, **patience) as batch,
        function("ingest", proxy.url, WRITE_TIMEOUT_S="60") as patient,
    ):
        yield Line(url, register(url), proxy, ingest, batch, patient)
        for server in (ingest, batch, patient):
            assert "internal error" not in server.log
            assert "Traceback" not in server.log


def check_unavailable(answers: list[Answer]) -> None:
    assert {(answer.status, answer.code) for answer in answers} == {(503, "store_unavailable")}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert max(answer.seconds for answer in answers) < WRITE_TIMEOUT_S + 1


def check_recovered(line: Line) -> None:
    """The next requests succeed, all of them, within a second."""
    answers = line.send()
    assert [answer.status for answer in answers] == [200] * 10
    assert max(answer.seconds for answer in answers) < 1


def test_paused_database_is_unavailable_in_time_and_loses_nothing(mortal: Mortal, line: Line) -> None:
    assert line.send(1)[0].status == 200
    with Load(line.ingest.port, line.url) as load:
        time.sleep(0.3)
        mortal.pause()
        time.sleep(WRITE_TIMEOUT_S + 1.5)
        mortal.resume()
        resumed = time.monotonic()
        eventually(lambda: load.succeeded_since(resumed))
        assert load.silence_after(resumed) < 1
    load.check_all_stored()
    assert {code for code, _ in load.rejections} == {"store_unavailable"}
    assert max(seconds for _, seconds in load.rejections) < WRITE_TIMEOUT_S + 1


def test_health_of_a_paused_database_is_503_within_seconds(mortal: Mortal, line: Line) -> None:
    assert requests.get(f"{line.ingest.url}/health", timeout=5).status_code == 200
    mortal.pause()
    try:
        time.sleep(1.1)  # the answer before is shared with all who ask within a second
        answer = requests.get(f"{line.ingest.url}/health", timeout=5)
        assert requests.get(line.ingest.url, timeout=1).status_code == 200
    finally:
        mortal.resume()
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    check_recovered(line)


def test_server_without_free_connections_is_unavailable(mortal: Mortal, line: Line) -> None:
    """Others hold every connection: 503, not 500. Connections that a function has already go on working."""
    check_recovered(line)
    with all_connections_of(mortal) as held:
        assert line.send(3)[0].status == 200  # on the connections from before
        held[0].run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{line.name}'")
        theirs = f"SELECT FROM pg_stat_activity WHERE datname = '{line.name}'"
        eventually(lambda: not held[0].run(theirs))
        take_all(mortal, held)
        check_unavailable(line.send())
    assert " (53300)" in line.ingest.log
    check_recovered(line)


@contextmanager
def all_connections_of(mortal: Mortal) -> Iterator[list[pg8000.native.Connection]]:
    held: list[pg8000.native.Connection] = []
    try:
        take_all(mortal, held)
        yield held
    finally:
        for connection in held:
            connection.close()


def take_all(mortal: Mortal, held: list[pg8000.native.Connection]) -> int:
    """Connect until it says that there are too many; return how many it took."""
    for number in range(100):
        try:
            held.append(connect(read_database({"DATABASE_URL": mortal.url()}), 5))
        except pg8000.native.DatabaseError as error:
            if error.args[0]["C"] != "53300":
                raise
            return number
    raise AssertionError("there is no limit")


@pytest.mark.skipif(not is_root(), reason="only root may mount the small file system that is to be full")
def test_full_disk_is_unavailable_and_stores_nothing(mortal: Mortal, line: Line) -> None:
    with tmpfs(Path(mortal.server.pgdata).parent / "small", mortal.server.system_user) as small:
        mortal.run(f"CREATE TABLESPACE small LOCATION '{small}/space'")
        query(line.url, "ALTER TABLE metrics_default SET TABLESPACE small")
        try:
            filler = small / "filler"
            with suppress(OSError):  # because the disk is full
                filler.write_bytes(bytes(8_000_000))
            user_id = register(line.url)
            batch = [[metric(user_id) for _ in range(1000)]]
            check_unavailable(post_all(line.ingest_batch.port, "/ingest_batch/", batch))
            assert query(line.url, "SELECT FROM metrics WHERE user_id = :u", u=user_id) == []
            filler.unlink()
            (answer,) = post_all(line.ingest_batch.port, "/ingest_batch/", batch)
            # What was answered 503 may have been stored after all, as soon as there was room.
            counts = json.loads(answer.body)
            assert (counts["stored"] + counts["duplicates"], counts["rejected"]) == (1000, 0)
            assert query(line.url, "SELECT count(*) FROM metrics WHERE user_id = :u", u=user_id) == [[1000]]
        finally:
            query(line.url, "ALTER TABLE metrics_default SET TABLESPACE pg_default")
            mortal.run("DROP TABLESPACE small")
    assert "53100" in line.ingest_batch.log


@contextmanager
def tmpfs(at: Path, owner: str) -> Iterator[Path]:
    at.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", at], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        (at / "space").mkdir()
        subprocess.run(["chown", owner, at / "space"], check=True)
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.mark.parametrize("cut", [False, True], ids=["held-back", "lost"])
def test_network_that_drops_everything_is_unavailable_in_time(line: Line, cut: bool) -> None:
    """What it held back arrives late, or never."""
    check_recovered(line)
    line.proxy.hold()
    check_unavailable(line.send())
    line.proxy.release(cut=cut)
    check_recovered(line)


def test_connections_that_the_network_has_forgotten_are_replaced(line: Line) -> None:
    """All lanes reconnect by themselves after the requests in one of them have timed out."""
    check_recovered(line)
    line.proxy.forget()
    # Both lanes time out, or one does, and the other either waits or has connected only now.
    assert 503 in {answer.status for answer in line.send()} <= {200, 503}
    check_recovered(line)


def test_network_that_is_cut_again_and_again_fails_no_request(line: Line) -> None:
    with Load(line.patient.port, line.url) as load:
        for _ in range(20):
            time.sleep(0.1)
            line.proxy.cut()
    load.check_all_stored()
    assert load.statuses.keys() == {200}


def test_slow_network_fails_no_request(line: Line) -> None:
    line.proxy.delay_s = 0.2
    try:
        with Load(line.patient.port, line.url) as load:
            time.sleep(1.5)
    finally:
        line.proxy.delay_s = 0
    load.check_all_stored()
    assert load.statuses.keys() == {200}


@pytest.mark.parametrize("strict", [False, True])
def test_reply_that_is_cut_off_anywhere_is_no_replay(line: Line, strict: bool) -> None:
    """Committed, but the reply is lost: the statement is sent again, and reported as stored, not as duplicate."""
    batch = 3 if strict else 0
    for after in (0, 1, 4, 5, 40, 90):
        server = line.ingest_batch if strict else line.ingest
        with Load(server.port, line.url, clients=1, batch=batch, strict=strict) as load:
            time.sleep(0.05)
            line.proxy.cut_next_reply(after)
            eventually(lambda: line.proxy.reply_limit is None)
            time.sleep(0.05)
        load.check_all_stored()
        assert load.statuses.keys() == {200}
