"""The page in a real Chromium: every view, its figures, and what people do with it."""

import csv
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from dashboard.browser import PHONE, RANGE, Watched
from dashboard.conftest import Board
from dashboard.data import DAY, HOSTILE, IN_RANGE

Watch = Callable[..., Watched]
BOUNDS = {"a": DAY, "b": DAY + timedelta(days=5)}
FIGURES = """
    SELECT count(*), count(DISTINCT user_id), count(DISTINCT (user_id, session_id)),
           sum(value) FILTER (WHERE metric_type = 'talked_time'),
           avg(value) FILTER (WHERE metric_type = 'microphone_used'),
           avg(value) FILTER (WHERE metric_type = 'speaker_used'),
           avg(value) FILTER (WHERE metric_type = 'voice_sentiment')
    FROM metrics WHERE timestamp >= :a AND timestamp < :b
"""


def duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def score(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def tiles(page: Page) -> dict[str, str]:
    return {
        tile.locator("h2").inner_text(): tile.locator(".figure").inner_text() for tile in page.locator(".tile").all()
    }


def views(board: Board) -> dict[str, str]:
    """Every view's address."""
    user, session = board.sql("SELECT user_id, session_id FROM sessions ORDER BY start_time LIMIT 1")[0]
    return {
        "overview": f"overview?{RANGE}", "types": f"types?{RANGE}", "users": f"users?{RANGE}",
        "user": f"user?user={user}&{RANGE}", "session": f"session?user={user}&session={session}&{RANGE}",
        "refused": f"refused?{RANGE}",
    }  # fmt: skip


def test_overview_shows_the_figures_of_the_raw_metrics(board: Board, watch: Watch) -> None:
    page = watch(board.server).open(f"overview?{RANGE}")
    ((metrics, users, sessions, talked, microphone, speaker, mood),) = board.sql(FIGURES, **BOUNDS)
    ((refused,),) = board.sql(
        "SELECT count(*) FROM rejected_metrics, unnest(codes) WHERE received_at < :b", b=BOUNDS["b"]
    )
    assert tiles(page) == {
        "Metrics": f"{metrics:,}", "Active users": f"{users:,}", "Sessions": f"{sessions:,}",
        "Talk time": duration(talked),
        "Microphone used": f"{microphone:.1%}".replace("%", " %"), "Speaker used": f"{speaker:.1%}".replace("%", " %"),
        "Mean sentiment": score(mood), "Refused": str(refused),
    }  # fmt: skip
    expect(page.locator(".tile .change").first).to_have_text("new")
    codes = dict(board.sql("SELECT code, count(*)::text FROM rejected_metrics, unnest(codes) code GROUP BY code"))
    shown = {
        row.locator("a").inner_text(): row.locator(".number").inner_text() for row in page.locator(".codes li").all()
    }
    assert shown == codes
    assert page.locator(".spark path").count() == 7
    expect(page.locator("#freshness")).to_contain_text(re.compile(r"Last metric \d[\d,]* days ago"))
    expect(page.locator("#freshness")).to_contain_text(re.compile(r"Summaries \d+ (s|min) old"))


def test_every_type_has_a_chart_and_its_aggregate(board: Board, watch: Watch) -> None:
    page = watch(board.server).open(f"types?{RANGE}")
    expect(page.locator(".card")).to_have_count(5)
    shown = {
        card.locator("h2").inner_text(): card.locator(".figure").inner_text() for card in page.locator(".card").all()
    }
    ((*_, talked, microphone, speaker, mood),) = board.sql(FIGURES, **BOUNDS)
    ((reaction,),) = board.sql("SELECT avg(value) FROM metrics WHERE metric_type = 'reaction_time'")
    assert shown == {
        "talked_time": duration(talked), "microphone_used": f"{microphone:.1%}".replace("%", " %"),
        "speaker_used": f"{speaker:.1%}".replace("%", " %"), "voice_sentiment": score(mood),
        "reaction_time": f"{round(reaction)} ms",
    }  # fmt: skip
    assert page.locator("canvas").count() == 5


def test_hovering_a_chart_says_the_value_and_utc(board: Board, watch: Watch) -> None:
    page = watch(board.server).open(f"types?{RANGE}")
    hover(page, page.locator(".card", has_text="talked_time").locator(".u-over"), 0.31)
    readouts = page.locator(".readout")
    for readout in readouts.all():  # the charts move together
        expect(readout).to_contain_text(re.compile(r"· \w{3},? \d+ Aug,? \d\d:00"))
    assert re.fullmatch(r"2024-08-0\d \d\d:00:00 UTC", readouts.first.get_attribute("title") or "")


def hover(page: Page, locator: Any, at: float) -> None:
    box = locator.bounding_box()
    page.mouse.move(box["x"] + box["width"] * at, box["y"] + box["height"] / 2)


def drag(page: Page, locator: Any, start: float, end: float) -> None:
    hover(page, locator, start)
    page.mouse.down()
    hover(page, locator, (start + end) / 2)
    hover(page, locator, end)
    page.mouse.up()


def test_dragging_zooms_all_charts_and_the_address_says_so(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open(f"types?{RANGE}")
    drag(page, page.locator(".u-over").first, 0.2, 0.5)
    page.wait_for_url(re.compile("to=2024-08-07"))
    watched.settle()
    query = dict(re.findall(r"(from|to)=([^&]+)", page.url.replace("%3A", ":")))
    for name, dragged in (("from", DAY + timedelta(days=1)), ("to", DAY + timedelta(days=2.5))):
        assert abs(datetime.fromisoformat(query[name]) - dragged) < timedelta(minutes=30)
    ((count,),) = board.sql(
        "SELECT count(*) FROM metrics WHERE metric_type = 'talked_time' AND timestamp >= CAST(:a AS timestamptz)"
        " AND timestamp < CAST(:b AS timestamptz)", a=query["from"], b=query["to"],
    )  # fmt: skip
    expect(page.locator(".card", has_text="talked_time")).to_contain_text(f"of {count} metrics")
    page.go_back()
    ((count,),) = board.sql(
        "SELECT count(*) FROM metrics WHERE metric_type = 'talked_time' AND timestamp < :b", b=BOUNDS["b"]
    )
    expect(page.locator(".card", has_text="talked_time")).to_contain_text(f"of {count} metrics")


def test_range_is_chosen_by_preset_and_by_dates_and_survives_a_reload(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open("overview")
    page.get_by_role("link", name="30 days").click()
    page.wait_for_url(re.compile(r"range=30d$"))
    page.locator("summary", has_text="Custom").click()
    page.get_by_label("From").fill("2024-08-05T02:00")  # in Berlin, which is midnight in UTC
    page.get_by_label("To", exact=True).fill("2024-08-01T02:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".wrong")).to_contain_text("must be before")
    page.get_by_label("To", exact=True).fill("2024-08-10T02:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".tile .figure").first).to_have_text(IN_RANGE)
    page.reload()
    expect(page.locator(".tile .figure").first).to_have_text(IN_RANGE)
    page.get_by_role("link", name="Users").click()  # the range goes along
    expect(page.locator("tbody tr")).to_have_count(7)


def test_users_are_searched_sorted_and_lead_to_their_sessions(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open(f"users?{RANGE}")

    def names() -> list[str]:
        return [cell.inner_text() for cell in page.locator("tbody th").all()]

    assert len(names()) == 7
    page.get_by_role("button", name="Talk time").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Talk time")
    watched.settle()
    talked = board.sql(
        "SELECT sum(value) FROM metrics WHERE metric_type = 'talked_time' AND timestamp < :b"
        " GROUP BY user_id ORDER BY 1 DESC",
        b=BOUNDS["b"],
    )
    assert [row.locator("td").first.inner_text() for row in page.locator("tbody tr").all()] == [
        duration(seconds) for (seconds,) in talked
    ]
    page.get_by_role("button", name="User").click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("User")
    page.get_by_role("searchbox").fill("ADA")
    expect(page.locator("tbody tr")).to_have_count(2)
    assert names() == ["ada lovelace", "Ada Mensah"]
    page.get_by_role("searchbox").fill("nobody of this name")
    expect(page.locator(".empty-row")).to_contain_text("nobody of this name")
    page.get_by_role("searchbox").fill("lin")
    page.get_by_role("link", name="Mei Lin").click()
    expect(page.locator("h1")).to_have_text("Mei Lin")
    ((sessions, user),) = board.sql(
        "SELECT count(*), user_id::text FROM sessions JOIN users USING (user_id)"
        " WHERE name = 'Mei Lin' GROUP BY user_id"
    )
    expect(page.locator("tbody tr")).to_have_count(sessions)
    expect(page.locator(".id")).to_contain_text(user)
    page.locator("tbody a").last.click()
    expect(page.locator("h1")).to_contain_text("Session of ")
    expect(page.locator(".crumbs")).to_contain_text("Mei Lin")
    expect(page.locator(".lane")).to_have_count(5)


def test_session_shows_every_raw_value(board: Board, watch: Watch) -> None:
    page = watch(board.server).open(views(board)["session"])
    session = re.search("session=([^&]+)", views(board)["session"])[1]  # type: ignore[index]
    rows = board.sql(
        "SELECT metric_type, value FROM metrics WHERE session_id = CAST(:s AS uuid) ORDER BY timestamp, metric_id",
        s=session,
    )
    shown = [[cell.inner_text() for cell in row.locator("td").all()[:2]] for row in page.locator("tbody tr").all()]
    assert [kind for kind, _ in shown] == [kind for kind, _ in rows]
    moods = [value for kind, value in rows if kind == "voice_sentiment"]
    assert [text for kind, text in shown if kind == "voice_sentiment"] == [score(mood) for mood in moods]
    talked = sum(value for kind, value in rows if kind == "talked_time")
    facts = {
        fact.locator("dt").inner_text(): fact.locator("dd").inner_text() for fact in page.locator(".facts div").all()
    }
    assert facts["Talk time"] in (duration(talked), f"{talked:.1f} s")
    assert facts["Mean sentiment"] == score(sum(moods) / len(moods))
    assert facts["Metrics"] == "30"
    hover(page, page.locator(".lane.score .u-over"), 0.5)
    expect(page.locator(".lane.score .readout")).to_contain_text(re.compile(r"\d\.\d\d · 5 Aug, \d\d:\d\d:\d\d"))
    expect(page.locator(".lane.flag .readout").first).to_contain_text(re.compile("o(n|ff) · "))


def test_refused_are_shown_by_code_with_payload_and_command(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open(f"refused?{RANGE}")
    expect(page.locator(".refusals li")).to_have_count(12)
    page.locator(".chips a", has_text="value_out_of_range").click()
    expect(page.locator(".refusals li")).to_have_count(4)
    expect(page.locator(".command code")).to_have_text("metrics-ingest rejected replay --code value_out_of_range")
    page.locator(".refusals summary").first.click()
    expect(page.locator(".payload pre").first).to_contain_text('"n": 10')
    expect(page.locator(".payload").first).to_contain_text("of 9,000 bytes")
    expect(page.locator(".refusals .reason").first).to_have_text("detail 10")


def test_csv_is_downloaded_from_its_button(board: Board, watch: Watch, tmp_path: Path) -> None:
    page = watch(board.server).open(f"users?{RANGE}")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "users.csv"
    download.value.save_as(tmp_path / "users.csv")
    with (tmp_path / "users.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7


def test_hostile_name_is_text_everywhere(board: Board, watch: Watch) -> None:
    watched = watch(board.server)
    page = watched.open(f"users?search=onerror&{RANGE}")
    page.on("dialog", lambda dialog: watched.faults.append("a script of a name ran"))
    expect(page.locator("tbody th")).to_have_text(HOSTILE)
    page.locator("tbody a").click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    page.locator("tbody a").first.click()
    expect(page.locator(".crumbs")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["overview", "types", "users", "user", "session", "refused"])
def test_axe_finds_nothing_serious(board: Board, watch: Watch, view: str, scheme: str) -> None:
    watched = watch(board.server, color_scheme=scheme)
    page = watched.open(views(board)[view])
    if view == "refused":
        page.locator(".refusals summary").first.click()
    assert watched.axe() == []


def test_dark_and_light_follow_the_reader(board: Board, watch: Watch) -> None:
    def brightness(scheme: str) -> int:
        page = watch(board.server, color_scheme=scheme).open(f"overview?{RANGE}")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    assert brightness("dark") < 100 < 600 < brightness("light")


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1920])
def test_no_view_is_wider_than_its_window(board: Board, watch: Watch, width: int) -> None:
    watched = watch(board.server, viewport={"width": width, "height": 844})
    for address in views(board).values():
        page = watched.open(address)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (address, width)


def test_phone_has_every_view_in_reach_of_a_thumb(board: Board, watch: Watch) -> None:
    page = watch(board.server, viewport=PHONE, has_touch=True, is_mobile=True).open(f"overview?{RANGE}")
    for name in ("Metrics", "Users", "Refused", "Overview"):
        link = page.locator("#views a", has_text=name)
        box = link.bounding_box()
        assert box is not None
        assert box["height"] >= 32
        link.tap()
        expect(page.locator("h1")).to_have_text(name)


def test_keyboard_reaches_everything(board: Board, watch: Watch) -> None:
    page = watch(board.server).open(f"overview?{RANGE}")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.append(page.evaluate("document.activeElement.innerText.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[0] == "Skip to the content"
    for name in ("Overview", "Metrics", "Users", "Refused", "Live", "Hour", "Day", "7 days", "30 days", "CSV"):
        assert name in reached
    page.locator("#views a", has_text="Users").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Users")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.title() == "Users · metrics-ingest"


def test_times_are_the_readers_with_utc_on_hover(board: Board, watch: Watch) -> None:
    page = watch(board.server, timezone_id="America/New_York").open(f"refused?{RANGE}")
    time = page.locator(".refusals time").first
    expect(time).to_have_attribute("title", "2024-08-08 12:00:00 UTC")
    expect(time).to_have_text("8 Aug, 08:00:00")


def test_first_view_is_light(board: Board, watch: Watch) -> None:
    """All that the overview loads, unpacked, without what the API answers."""
    watched = watch(board.server)
    sizes: dict[str, int] = {}
    watched.page.on("response", lambda response: sizes.update({response.url: len(response.body())}))
    watched.open("overview")
    static = {url: size for url, size in sizes.items() if "/api/" not in url}
    assert sum(static.values()) <= 150_000, static
    assert len(static) >= 12


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_hovering_moves_nothing(board: Board, watch: Watch, width: int) -> None:
    page = watch(board.server, viewport={"width": width, "height": 900}).open(f"types?{RANGE}")
    places = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.getBoundingClientRect().top)"
    before = page.evaluate(places)
    hover(page, page.locator(".u-over").first, 0.31)
    expect(page.locator(".readout").nth(3)).not_to_be_empty()
    assert page.evaluate(places) == before
