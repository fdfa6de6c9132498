"""A connection that the server refuses leaves no socket open."""

import gc
from collections.abc import Iterator

import pg8000.native
import psutil
import pytest

from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counting frees objects meanwhile."""
    gc.disable()
    yield
    gc.enable()


def test_refused_connection_is_closed_at_once(database_url: str, no_collection: None) -> None:
    database = read_database({"DATABASE_URL": database_url.replace("test_", "no_such_")})
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(pg8000.native.DatabaseError, match="3D000"):
            connect(database, 10)
    assert psutil.Process().num_fds() == before
