"""Fixtures: one PostgreSQL for the session, a database for each test or module, and functions as real processes."""

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from metrics_ingest.settings import settings
from support import metrics
from support.alone import turn
from support.chromium import chromium
from support.console import Console
from support.mortal import Mortal
from support.processes import Postgres, Server, Stack, function
from support.skips import fail_unlisted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skip whose reason is not listed is a failure."""
    report = yield
    fail_unlisted(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for modules that are skipped as a whole."""
    report = yield
    fail_unlisted(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run tests marked `alone` while no other test runs. Let tests without a browser run event loops of their own.

    Playwright's event loop counts as running until it is closed.
    """
    foreign = None if "playwright" in getattr(item, "fixturenames", ()) else asyncio._get_running_loop()
    if foreign:
        asyncio._set_running_loop(None)
    try:
        with turn(alone=item.get_closest_marker("alone") is not None):
            return (yield)
    finally:
        if foreign:
            asyncio._set_running_loop(foreign)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """The driver of browsers, for all tests of pages: a process can have one."""
    with sync_playwright() as running:
        loop = asyncio._get_running_loop()
        yield running
        asyncio._set_running_loop(loop)  # this may be the end of a test without a browser


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
    loop = asyncio._get_running_loop()
    yield running
    asyncio._set_running_loop(loop)
    running.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """A migrated database of the test's own."""
    return postgres.clone()


@pytest.fixture(scope="session")
def mortal_server() -> Iterator[Mortal]:
    server = Mortal()
    yield server
    server.close()


@pytest.fixture
def mortal(mortal_server: Mortal) -> Iterator[Mortal]:
    """A PostgreSQL that the test may kill; it is started again when the test ends."""
    yield mortal_server
    mortal_server.revive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start functions for one test: serve(name, database_url, **environment)."""
    with ExitStack() as stack:
        yield lambda name, url, **environment: stack.enter_context(function(name, url, **environment))


@pytest.fixture(scope="session")
def stack(postgres: Postgres) -> Iterator[Stack]:
    """The functions that the tests share; each test registers users of its own."""
    url = postgres.clone()
    with function("ingest", url) as ingest, function("ingest_batch", url) as batch, function("users", url) as users:
        yield Stack(url, ingest, batch, users)
        for server in (ingest, batch, users):
            assert "internal error" not in server.log, server.log


@pytest.fixture
def metric(stack: Stack) -> dict[str, Any]:
    """A valid metric of a new user."""
    return metrics.metric(stack.user())


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings for tests that call the library in this process, without a database."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@localhost/none")
    monkeypatch.setenv("ALLOW_ANONYMOUS", "true")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def console(database_url: str) -> Console:
    """The command on a database of the test's own."""
    return Console(database_url)


@pytest.fixture
def filled(console: Console) -> Callable[[str, int], str]:
    """Store so many metrics of a new user in the month that begins then; return the user's id."""

    def fill(month: str, count: int) -> str:
        user_id = console.user()
        console.sql("INSERT INTO sessions SELECT CAST(:u AS uuid), CAST(:u AS uuid), now()", u=user_id)
        console.sql(
            "INSERT INTO metrics"
            " SELECT CAST(:u AS uuid), CAST(:m AS timestamptz) + n * interval '1 second', gen_random_uuid(),"
            " CAST(:u AS uuid), 'talked_time', n FROM generate_series(1, CAST(:n AS integer)) n",
            u=user_id, m=month, n=count,
        )  # fmt: skip
        return user_id

    return fill
