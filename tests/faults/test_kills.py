"""The database is killed under load: every acknowledged metric is stored, once, and the functions recover."""

import os
import random
import time
from collections.abc import Callable
from functools import partial

import pytest

from faults.load import Load, post_all
from support.metrics import metric, register
from support.mortal import Mortal
from support.processes import Server, eventually, query

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "5"))
Serve = Callable[..., Server]


@pytest.mark.parametrize("batch", [0, 50], ids=["single", "strict-batches"])
def test_killed_database_loses_and_doubles_nothing(mortal: Mortal, serve: Serve, batch: int) -> None:
    """SIGKILL at random moments under load; clients that send again on 503 end with everything stored once."""
    url = mortal.clone()
    # Single metrics: so little time that clients get their 503. Batches: enough to ride it out.
    server = serve("ingest_batch" if batch else "ingest", url, WRITE_TIMEOUT_S="10" if batch else "0.5")
    silences = []
    with Load(server.port, url, batch=batch, strict=bool(batch)) as load:
        for _ in range(KILLS):
            time.sleep(random.uniform(0.2, 1))
            mortal.kill()
            time.sleep(random.uniform(0, 0.7))
            mortal.start()
            back = time.monotonic()
            eventually(partial(load.succeeded_since, back))
            silences.append(load.silence_after(back))
    load.check_all_stored()
    if not batch:
        assert load.statuses[503]
    print(  # noqa: T201  # figures for the report
        f"{KILLS} kills, {len(load.acknowledged)} metrics acknowledged, none lost or doubled; "
        f"longest silence after the return {max(silences):.2f} s; answers {dict(load.statuses)}"
    )
    assert max(silences) < 1


@pytest.mark.parametrize("fault", ["terminate", "restart"])
def test_ended_connections_fail_no_request(mortal: Mortal, serve: Serve, fault: str) -> None:
    """pg_terminate_backend and a restart in fast mode: no answer is a failure, none is a false replay."""
    url = mortal.clone()
    server = serve("ingest", url, WRITE_TIMEOUT_S="60")  # a busy machine takes more than 10 s for a restart
    with Load(server.port, url) as load:
        for _ in range(5):
            time.sleep(0.3)
            if fault == "restart":
                mortal.restart()
            else:
                terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                query(url, f"{terminate} AND pid <> pg_backend_pid()")
    load.check_all_stored()
    assert load.statuses.keys() == {200}


@pytest.mark.parametrize("name", ["ingest", "ingest_batch"])
def test_first_request_after_an_idle_connection_died_succeeds(mortal: Mortal, serve: Serve, name: str) -> None:
    url = mortal.clone()
    server = serve(name, url)
    batch = 0 if name == "ingest" else 3
    with Load(server.port, url, clients=4, batch=batch, strict=True):
        time.sleep(0.3)
    mortal.restart()
    load = Load(server.port, url, clients=1, batch=batch, strict=True)
    with load:
        time.sleep(0.2)
    load.check_all_stored()
    assert load.statuses.keys() == {200}
    assert load.slowest < 1
    assert "unavailable" not in server.log


def test_replay_after_an_idle_connection_died_is_still_a_replay(mortal: Mortal, serve: Serve) -> None:
    """Because the statement is known not to have been sent, its duplicates are not those of a lost commit."""
    url = mortal.clone()
    server = serve("ingest", url)
    body = metric(register(url))
    assert [answer.status for answer in post_all(server.port, "/ingest/", [body])] == [200]
    mortal.restart()
    (answer,) = post_all(server.port, "/ingest/", [body])
    assert answer.headers["idempotent-replayed"] == "true"


def test_killed_function_has_acknowledged_nothing_that_is_missing(mortal: Mortal, serve: Serve) -> None:
    """SIGKILL of the server and of all its workers, and of a worker alone, which the server replaces."""
    url = mortal.clone()
    for victim in ("worker", "all"):
        server = serve("ingest", url)
        with Load(server.port, url, give_up=True) as load:
            for _ in range(3 if victim == "worker" else 1):
                time.sleep(0.7)
                before = load.refused_connections
                server.kill(worker_only=victim == "worker")
                eventually(partial(load.was_refused_since, before))
        load.check()
        assert load.acknowledged
        assert load.refused_connections
