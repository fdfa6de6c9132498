"""Fixtures of the dashboard's tests: a filled database and a dashboard on it, shared by tests that change nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser

from dashboard.browser import Watched
from dashboard.data import fill
from support.processes import Postgres, Server, function, query


@dataclass(frozen=True)
class Board:
    """A dashboard and its database."""

    server: Server
    database_url: str

    def sql(self, sql: str, **parameters: Any) -> list[Any]:
        """Look into the database."""
        return query(self.database_url, sql, **parameters)


@pytest.fixture(scope="session")
def board(postgres: Postgres) -> Iterator[Board]:
    """A dashboard without keys on a database with the data of data.py."""
    url = postgres.clone()
    fill(url)
    with function("dashboard", url) as server:
        yield Board(server, url)
        assert "internal error" not in server.log, server.log


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Open pages: watch(server, **options of the browser context). What a page must never do fails the test."""
    opened: list[Watched] = []

    def open_page(server: Server, **options: Any) -> Watched:
        opened.append(Watched(browser, server.url, **options))
        return opened[-1]

    yield open_page
    for watched in opened:
        watched.check()
