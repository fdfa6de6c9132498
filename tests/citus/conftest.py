"""A Citus cluster: CITUS_URL names a database on its coordinator, with the extension and at least two workers.

Neither pip nor Debian has Citus: whoever runs a cluster can check it, nobody else has to build one.
"""

import os
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from support.console import Console
from support.processes import query

URL = os.environ.get("CITUS_URL", "")
Users = Callable[[int], list[str]]


@pytest.fixture(scope="session")
def cluster() -> str:
    """The URL of the migrated database, with its tables distributed."""
    if not URL:
        pytest.skip("CITUS_URL is not set")
    migrations.migrate(read_database({"DATABASE_URL": URL}))
    Console(URL).run("citus", "distribute")
    return URL


@pytest.fixture
def console(cluster: str) -> Console:
    """`metrics-ingest` on the cluster."""
    return Console(cluster)


@pytest.fixture
def users(console: Console) -> Users:
    """Register users."""

    def register(count: int) -> list[str]:
        ids = [str(uuid4()) for _ in range(count)]
        batch = ",".join(f'{{"user_id": "{user}", "name": "Greg"}}' for user in ids)
        console.sql("SELECT register_users(CAST(:batch AS json))", batch=f"[{batch}]")
        return ids

    return register


def by_node(url: str, users: list[str]) -> dict[int, list[str]]:
    """The users by the number of the node that has them."""
    place = "SELECT locate_users(CAST(:users AS json))"
    found = query(url, place, users="[" + ",".join(f'"{UUID(user)}"' for user in users) + "]")[0][0]
    nodes: dict[int, list[str]] = {}
    for entry in found:
        nodes.setdefault(entry["node"], []).append(users[entry["position"] - 1])
    return nodes
