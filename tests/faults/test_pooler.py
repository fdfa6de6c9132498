"""Behind PgBouncer in transaction mode, where each transaction may use another server connection."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.load import Load
from metrics_ingest.settings import read_database
from support.console import Console
from support.mortal import Mortal, is_root
from support.processes import Server, eventually, free_port, query

pytestmark = pytest.mark.slow

# Not autovacuum's workers.
OURS = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIGURATION = """
[databases]
{name} = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 500
server_login_retry = 1
"""


@pytest.fixture
def pooled(mortal: Mortal, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A database's own URL, and that of PgBouncer in front of it, with a pool of 2."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    url = mortal.clone()
    database = read_database({"DATABASE_URL": url})
    listen = free_port()
    file = tmp_path / "pgbouncer.ini"
    settings = {"name": database.database, "host": database.host, "port": database.port, "listen": listen}
    file.write_text(CONFIGURATION.format(**settings))
    user = mortal.server.system_user if is_root() else None  # PgBouncer does not run as root
    with file.open() as configuration:
        bouncer = subprocess.Popen(
            [PGBOUNCER, "/dev/stdin"], stdin=configuration, user=user, group=user, stderr=subprocess.DEVNULL
        )
    try:
        through = f"postgresql://postgres@127.0.0.1:{listen}/{database.database}?sslmode=disable"
        eventually(lambda: _answers(through))
        yield url, through
    finally:
        bouncer.terminate()
        bouncer.wait(10)


def _answers(url: str) -> bool:
    try:
        return query(url, "SELECT 1") == [[1]]
    except Exception:  # noqa: BLE001  # not yet
        return False


def test_two_hundred_clients_through_a_pool_of_two(pooled: tuple[str, str], serve: Callable[..., Server]) -> None:
    """Single metrics and strict batches, whose transaction takes two round trips, from eight lanes in two processes."""
    url, through = pooled
    lanes = {"WRITE_LANES": "4"}
    single, batches = serve("ingest", through, **lanes), serve("ingest_batch", through, **lanes)
    with ExitStack() as stack:
        loads = [
            stack.enter_context(Load(single.port, url, clients=170)),
            stack.enter_context(Load(batches.port, url, clients=30, batch=20, strict=True)),
        ]
        time.sleep(2)
        ours = query(url, OURS)
    for load in loads:
        load.check_all_stored()
        assert load.statuses.keys() == {200}
        assert load.acknowledged
        print(f"{len(load.acknowledged)} metrics through PgBouncer")  # noqa: T201  # a figure for the report
    assert 1 <= len(ours) <= 2


def test_restart_behind_the_pooler_fails_no_request(
    mortal: Mortal, pooled: tuple[str, str], serve: Callable[..., Server]
) -> None:
    url, through = pooled
    server = serve("ingest", through, WRITE_TIMEOUT_S="60")
    with Load(server.port, url) as load:
        time.sleep(0.5)
        mortal.restart()
        time.sleep(0.5)
    load.check_all_stored()
    assert load.statuses.keys() == {200}


def test_named_statements_that_the_pooler_mixes_up_fail_no_request(
    pooled: tuple[str, str], serve: Callable[..., Server]
) -> None:
    """PgBouncer gives a lane a connection that does not have its statement, or has it already: it goes on unnamed."""
    url, through = pooled
    others = [serve("ingest", through, WRITE_LANES="1") for _ in range(3)]
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(server.port, url, clients=4)) for server in others]
        time.sleep(1)
    for load, server in zip(loads, others, strict=True):
        load.check_all_stored()
        assert load.statuses.keys() == {200}
        assert "unavailable" not in server.log


def test_commands_leave_nothing_in_the_pooler_s_connections(pooled: tuple[str, str]) -> None:
    """Neither a lock, which would be held for ever, nor a time limit, which the next client would have."""
    url, through = pooled
    console = Console(through)
    user = console.user()
    console.ingest({"user_id": user, "timestamp": "2019-12-20T00:00:00Z"})
    console.run("migrate")
    console.run("partitions", "maintain", "--yes")
    console.run("summaries", "refresh")
    console.run("partitions", "maintain", "--keep", "2y", "--yes")
    console.run("user", "forget", user, "--yes")
    console.run("partitions", "maintain", "--ahead", "5", "--yes")
    assert query(url, "SELECT FROM pg_locks WHERE locktype = 'advisory'") == []
    settings = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    assert query(through, settings) == [["0", "0"]]
