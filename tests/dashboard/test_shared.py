"""Viewers of the same view share replies; nobody sees an old one after a refresh."""

from collections.abc import Callable

import pytest

from dashboard.data import fill, read
from metrics_ingest.dashboard.api import KEEP_S
from support.processes import Postgres, Server, eventually, query

BOUNDS = {"start": "2024-08-01T00:00:00Z", "end": "2024-09-01T00:00:00Z"}


@pytest.fixture
def url(postgres: Postgres) -> str:
    made = postgres.clone()
    fill(made)
    return made


@pytest.mark.parametrize(("name", "key"), [("overview", "metrics"), ("activity", "points")])
def test_figures_are_new_at_once_after_a_refresh(url: str, serve: Callable[..., Server], name: str, key: str) -> None:
    server = serve("dashboard", url)
    before = read(server, name, **BOUNDS)
    query(url, "DELETE FROM type_hour_rollup")
    query(url, "SELECT refresh_summaries()")
    assert read(server, name, **BOUNDS)[key] != before[key]


def test_reply_is_shared_for_a_moment(url: str, serve: Callable[..., Server]) -> None:
    """Seen by a change that no refresh tells of."""
    server = serve("dashboard", url)
    before = read(server, "overview", **BOUNDS)
    query(url, "DELETE FROM type_hour_rollup")
    assert read(server, "overview", **BOUNDS) == before
    eventually(lambda: read(server, "overview", **BOUNDS)["metrics"] == 0, KEEP_S + 1)


def test_refused_metric_is_seen_at_once(url: str, serve: Callable[..., Server]) -> None:
    server = serve("dashboard", url)
    before = read(server, "overview")["refused"]
    query(url, "INSERT INTO rejected_metrics (route, codes, payload, payload_bytes) VALUES ('ingest', '{new}', '', 0)")
    assert read(server, "overview")["refused"] == {**before, "new": 1}
