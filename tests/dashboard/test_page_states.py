"""The page when something is missing or changes: no data, no key, no database, new metrics."""

import hashlib
import re
from collections.abc import Callable

from playwright.sync_api import expect

from dashboard.browser import RANGE, Watched
from dashboard.conftest import Board
from dashboard.data import DAY, IN_ALL, IN_RANGE, fill
from support.processes import Postgres, Server, query

Watch = Callable[..., Watched]
Serve = Callable[..., Server]
NOW = """
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
    SELECT user_id, now(), gen_random_uuid(), session_id, 'talked_time', 5 FROM sessions LIMIT 1
"""


def test_empty_database_says_what_to_do_first(database_url: str, serve: Serve, watch: Watch) -> None:
    server = serve("dashboard", database_url)
    watched = watch(server)
    page = watched.open("overview")
    expect(page.locator(".empty h2")).to_have_text("No metric is stored yet")
    expect(page.locator(".command").nth(1)).to_contain_text(f"curl {server.url}/ingest/")
    expect(page.locator("#freshness")).to_contain_text("No metric yet")
    assert watched.axe() == []
    for view, text in (
        ("types", "no metric in this range"),
        ("users", "No user was active"),
        ("refused", "Nothing was refused"),
    ):
        expect(watched.open(view).locator("main")).to_contain_text(text)


def test_range_without_metrics_leads_to_those_that_are_there(board: Board, watch: Watch) -> None:
    page = watch(board.server).open("overview?range=24h")
    expect(page.locator(".empty h2")).to_have_text("No metric in this time range")
    page.get_by_role("link", name="Show all of it").click()
    expect(page.locator(".tile .figure").first).to_have_text(IN_ALL)


def test_summaries_that_were_never_refreshed_are_named(postgres: Postgres, serve: Serve, watch: Watch) -> None:
    url = postgres.clone()
    fill(url)
    query(url, "UPDATE summary_state SET refreshed_at = NULL")
    page = watch(serve("dashboard", url)).open(f"overview?{RANGE}")
    expect(page.locator(".notice")).to_contain_text("never refreshed")
    expect(page.locator(".notice code")).to_have_text("metrics-ingest summaries refresh")


def test_key_is_asked_for_kept_for_the_tab_and_sent_as_a_header(board: Board, serve: Serve, watch: Watch) -> None:
    digest = hashlib.sha256(b"read").hexdigest()
    server = serve("dashboard", board.database_url, ALLOW_ANONYMOUS="", READ_KEYS=f"lea:{digest}")
    watched = watch(server)
    watched.expected = ("401",)
    page = watched.open(f"users?{RANGE}")
    expect(page.locator("h1")).to_have_text("Read key")
    assert watched.axe() == []
    page.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator(".wrong").last).to_contain_text("not known")
    page.get_by_label("Key").fill("read")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(7)
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(7)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "users.csv"
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    assert "read" not in page.url


def test_database_away_is_said_and_the_page_recovers_by_itself(serve: Serve, watch: Watch) -> None:
    postgres = Postgres()
    try:
        url = postgres.clone()
        fill(url)
        watched = watch(serve("dashboard", url))
        watched.expected = ("503",)
        page = watched.open(f"overview?{RANGE}")
        postgres.stop()
        expect(page.locator(".notice.error")).to_contain_text("database is unavailable", timeout=20_000)
        expect(page.locator(".tile .figure").first).to_have_text(
            IN_RANGE
        )  # what was known stays, and says that it is old
        assert watched.axe() == []
        postgres.start()
        expect(page.locator(".notice")).to_have_count(0, timeout=20_000)
        expect(page.locator("main")).not_to_have_class(re.compile("stale"))
    finally:
        postgres.close()


def test_server_away_is_said(board: Board, serve: Serve, watch: Watch) -> None:
    server = serve("dashboard", board.database_url)
    watched = watch(server)
    watched.expected = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    page = watched.open(f"overview?{RANGE}")
    server.stop()
    expect(page.locator(".notice.error")).to_contain_text("server does not answer", timeout=20_000)


def test_new_metrics_appear_by_themselves_without_flicker_and_not_when_paused(
    postgres: Postgres, serve: Serve, watch: Watch
) -> None:
    url = postgres.clone()
    fill(url)
    watched = watch(serve("dashboard", url))
    query(url, NOW)
    query(url, "SELECT refresh_summaries()")
    page = watched.open("overview")
    figure = page.locator(".tile .figure").first
    expect(figure).to_have_text("1")
    page.evaluate("document.querySelectorAll('.tile, canvas, .card').forEach((element) => { element.mark = true; })")
    query(url, NOW)
    query(url, "SELECT refresh_summaries()")
    expect(figure).to_have_text("2", timeout=15_000)
    expect(page.locator("#freshness")).to_contain_text(re.compile("just now|[0-9] s ago"))
    kept = "[...document.querySelectorAll('.tile, canvas, .card')].every((element) => element.mark)"
    assert page.evaluate(kept), "the same elements, with other text"
    page.get_by_role("button", name="Live").click()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")
    query(url, NOW)
    query(url, "SELECT refresh_summaries()")
    page.wait_for_timeout(7_000)
    expect(figure).to_have_text("2")
    page.get_by_role("button", name="Paused").click()
    expect(figure).to_have_text("3")


def test_page_that_nobody_sees_asks_for_nothing(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open(f"overview?{RANGE}")
    page.evaluate(
        "Object.defineProperty(document, 'visibilityState', { value: 'hidden', configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(7_000)
    assert asked == []
    page.evaluate("delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))")
    watched.settle()
    assert asked


def test_users_are_paged(postgres: Postgres, serve: Serve, watch: Watch) -> None:
    url = postgres.clone()
    query(url, "INSERT INTO users (user_id, name) SELECT gen_random_uuid(), 'User ' || n FROM generate_series(1, 60) n")
    query(url, "INSERT INTO user_day_rollup SELECT user_id, CAST(:d AS date), 'talked_time', 1, random(), 1, 1, 1,"
               " now(), 1, now(), 1 FROM users", d=DAY.date())  # fmt: skip
    query(url, "UPDATE summary_state SET refreshed_at = now()")
    watched = watch(serve("dashboard", url))
    page = watched.open(f"users?order=talk_time&{RANGE}")
    seen = set()
    for pages, position in enumerate(("1\N{EN DASH}25 of 60", "26\N{EN DASH}50 of 60", "51\N{EN DASH}60 of 60")):
        expect(page.locator(".pager span")).to_have_text(position)
        seen |= {cell.inner_text() for cell in page.locator("tbody th").all()}
        assert len(seen) == min(60, 25 * (pages + 1))
        if pages < 2:
            page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(page.locator(".pager span")).to_have_text("26\N{EN DASH}50 of 60")
    page.get_by_role("link", name="30 days").click()
    expect(page.locator(".pager span")).to_have_text("None")
