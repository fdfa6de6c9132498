"""Fixtures: a Chromium, a site with the browser client, and a function that its pages post to."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext

from clients.browsers import Scene, Site, User
from clients.disturbances import between
from support.processes import Postgres, Server, function


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile of the test's own."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="module")
def batch(postgres: Postgres) -> Iterator[tuple[str, Server]]:
    """A database, and ingest_batch on it for pages of every origin."""
    url = postgres.clone()
    with function("ingest_batch", url, CORS_ORIGINS="*") as server:
        yield url, server


@pytest.fixture
def user(batch: tuple[str, Server]) -> User:
    return User(batch[0])


@pytest.fixture
def scene(context: BrowserContext, site: Site, batch: tuple[str, Server], user: User) -> Iterator[Scene]:
    with between(batch[1].url) as proxy:
        yield Scene(context, site, proxy, user)
