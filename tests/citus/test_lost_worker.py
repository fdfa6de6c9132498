"""A worker that is lost under load: its own users' metrics wait, everybody else's are stored.

CITUS_STOP_WORKER and CITUS_START_WORKER are shell commands that kill one worker of the cluster, and start it again.
"""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from uuid import uuid4

import pytest
import requests

from citus.conftest import Users, by_node
from support.console import Console
from support.metrics import current
from support.processes import Server, eventually

STOP, START = os.environ.get("CITUS_STOP_WORKER", ""), os.environ.get("CITUS_START_WORKER", "")
SENDERS = 4  # a node


# The commands belong to a cluster of the reader's own, as CITUS_URL does; tests/skips.txt accepts no other reason.
@pytest.mark.skipif(not (STOP and START), reason="CITUS_URL is not set, or CITUS_STOP_WORKER")
def test_only_the_users_of_a_lost_worker_wait(
    cluster: str, console: Console, users: Users, serve: Callable[..., Server]
) -> None:
    server = serve("ingest", cluster, WRITE_TIMEOUT_S="2")
    nodes = by_node(cluster, users(20))
    assert len(nodes) >= 2
    assert requests.post(server.url, json=current(users(1)[0]), timeout=30).ok
    done = Event()
    refused: Counter[int] = Counter()

    def send(node: int, user: str) -> list[str]:
        """Send metrics one after the other, each again with its id until it is acknowledged; return the ids."""
        acknowledged = []
        with requests.Session() as session:
            while not done.is_set():
                metric = current(user, metric_id=str(uuid4()))
                while (reply := session.post(server.url, json=metric, timeout=30)).status_code == 503:
                    refused[node] += 1
                assert reply.status_code == 200, reply.text
                acknowledged.append(metric["metric_id"])
        return acknowledged

    with ThreadPoolExecutor(SENDERS * len(nodes)) as pool:
        sent = {node: [pool.submit(send, node, user) for user in ids[:SENDERS]] for node, ids in nodes.items()}
        try:
            time.sleep(1)  # nothing to wait for: for so long metrics are sent before the loss
            subprocess.run(STOP, shell=True, check=True)
            # Nothing to wait for: the worker is away for three times WRITE_TIMEOUT_S, so that some give up.
            time.sleep(6)  # so long, for the reason above
            subprocess.run(START, shell=True, check=True)
            eventually(
                lambda: (
                    "f"
                    not in str(console.sql("SELECT bool_and(success)::text FROM run_command_on_all_nodes('SELECT 1')"))
                ),
                30,
            )
            time.sleep(3)  # nothing to wait for: for so long metrics are sent after its return
        finally:
            done.set()
        acknowledged = [metric_id for futures in sent.values() for future in futures for metric_id in future.result(60)]
    assert len([node for node, count in refused.items() if count]) == 1, refused
    eventually(
        lambda: (
            console.sql(
                "SELECT sum(result::int) FROM run_command_on_all_nodes('SELECT count(*) FROM pg_prepared_xacts')"
            )
            == [[0]]
        ),
        120,
    )
    ids = [user for of_node in nodes.values() for user in of_node]
    stored = console.sql("SELECT metric_id::text FROM metrics WHERE user_id = ANY (CAST(:ids AS uuid[]))", ids=ids)
    assert sorted(metric_id for (metric_id,) in stored) == sorted(acknowledged)
