"""Fixtures of the fault tests."""

from collections.abc import Iterator

import pytest

from support.mortal import Mortal


@pytest.fixture(scope="session")
def mortal_server() -> Iterator[Mortal]:
    server = Mortal()
    yield server
    server.close()


@pytest.fixture
def mortal(mortal_server: Mortal) -> Iterator[Mortal]:
    """A PostgreSQL that may be killed; it runs again when the test ends."""
    yield mortal_server
    mortal_server.revive()
