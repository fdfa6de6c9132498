"""What stands beside the functions: the front page, the health of all, and the 404 that lists what there is."""

import hashlib
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser

from dashboard.browser import PHONE, Watched
from metrics_ingest.http.functions import FUNCTIONS
from support.emulator import emulator
from support.problems import check_problem
from support.processes import Postgres, Server, query

NAMES = [function.name for function in FUNCTIONS]
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    return postgres.clone()


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[Server]:
    with emulator(DATABASE_URL=url) as running:
        yield running


def test_browsers_get_a_page_and_everybody_else_json(server: Server) -> None:
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = requests.get(server.url, headers=accept, timeout=10)
        assert answer.json() == {"functions": [f"/{name}/" for name in NAMES]}
        assert answer.headers["Vary"] == "Accept"
    page = requests.get(server.url, headers=HTML, timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'"
    assert page.headers["Vary"] == "Accept"
    for function in FUNCTIONS:
        assert f'data-function="{function.name}"' in page.text
    assert "{" not in page.text


def test_health_answers_for_all_functions(server: Server) -> None:
    answer = requests.get(f"{server.url}/health", timeout=10)
    assert answer.status_code == 200
    assert answer.json()["functions"] == dict.fromkeys(NAMES, "ok")


def test_health_names_each_function_that_does_not_reach_its_database(postgres: Postgres) -> None:
    url = postgres.clone()
    with emulator(DATABASE_URL=url, READ_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none") as server:
        answer = requests.get(f"{server.url}/health", timeout=10)
        check_problem(answer, "store_unavailable", "dashboard")
        assert answer.headers["Retry-After"]
        assert [(error["field"], error["detail"]) for error in answer.json()["errors"]] == [
            ("dashboard", "dashboard: its health check answers 503")
        ]


@pytest.mark.parametrize("path", ["/nothing", "/ingestion/", "/front/", "/front/x.css", "/health/x", "/docs/x"])
def test_404_lists_the_paths_that_exist(server: Server, path: str) -> None:
    for answer in (requests.get(server.url + path, timeout=10), requests.post(server.url + path, timeout=10)):
        check_problem(answer, "not_found")
        for listed in ("/docs", "/health", "/openapi.json", *(path for f in FUNCTIONS for path in f.paths)):
            assert listed in answer.json()["detail"]


def test_banner_names_the_dashboard_and_the_api_page(server: Server) -> None:
    assert f"{server.url}/dashboard/" in server.log
    assert f"{server.url}/docs" in server.log


def test_page_shows_the_state_and_the_next_step(server: Server, browser: Browser, url: str) -> None:
    """First how to send a metric, by commands that work; then the way to the dashboard. axe-core finds nothing."""
    watched = Watched(browser, server.url, permissions=["clipboard-read", "clipboard-write"])
    watched.base = server.url
    page = watched.page
    page.goto(server.url)
    page.get_by_text("No metric is stored yet").wait_for()
    page.locator(".state.ok").nth(len(NAMES) - 1).wait_for()
    assert watched.axe() == []
    assert page.locator("pre").first.inner_text().startswith(f"curl {server.url}/users/")
    requests.post(f"{server.url}/users/", json={"user_id": USER, "name": "Greg"}, timeout=10)
    metric = {"user_id": USER, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T12:34:56Z"}
    assert requests.post(f"{server.url}/ingest/", json=metric, timeout=10).status_code == 200
    page.get_by_role("link", name="Open the dashboard").click()
    page.locator("main h1").first.wait_for()
    assert page.url.startswith(f"{server.url}/dashboard/")
    watched.check()
    query(url, "DELETE FROM metrics")


@pytest.mark.parametrize("options", [{"viewport": PHONE}, {"color_scheme": "dark"}], ids=["phone", "dark"])
def test_page_fits_a_phone_and_the_dark(server: Server, browser: Browser, options: dict[str, object]) -> None:
    watched = Watched(browser, server.url, **options)
    watched.base = server.url
    watched.page.goto(server.url)
    watched.page.locator(".state.ok").first.wait_for()
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert watched.axe() == []
    watched.check()


def keys(key: str) -> str:
    return f"web:{hashlib.sha256(key.encode()).hexdigest()}"


def test_emulator_with_keys_for_sending_starts_and_says_how_to_open_the_dashboard(database_url: str) -> None:
    with emulator(DATABASE_URL=database_url, API_KEYS=keys("write")) as server:
        for path in ("/dashboard/", "/dashboard/api/overview", "/dashboard/health"):
            answer = requests.get(server.url + path, headers={"X-API-Key": "write"}, timeout=10)
            check_problem(answer, "unauthorized")
            assert "READ_KEYS" in answer.json()["detail"]
        assert "closed: set READ_KEYS" in server.log
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
        assert requests.post(f"{server.url}/users/", json={"name": "Greg"}, timeout=10).status_code == 401


@pytest.mark.parametrize(
    ("environment", "status"),
    [({"READ_KEYS": keys("read")}, 401), ({"ALLOW_ANONYMOUS": "true"}, 200)],
    ids=["read keys", "anonymous"],
)
def test_emulator_with_keys_opens_the_dashboard_to_read_keys_or_to_all(
    database_url: str, environment: dict[str, str], status: int
) -> None:
    with emulator(DATABASE_URL=database_url, API_KEYS=keys("write"), **environment) as server:
        for key, expected in ((None, status), ("write", status), ("read", 200)):
            headers = {"X-API-Key": key} if key else {}
            answer = requests.get(f"{server.url}/dashboard/api/types", headers=headers, timeout=10)
            assert answer.status_code == expected
