"""Two tabs record 2,000 metrics while everything fails in turn: each is stored once, or reported once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright

from clients.browsers import Chromium, Scene, Site, User, record, wait_for
from clients.disturbances import RecordingProxy
from clients.restartable import Function, running
from support.processes import Postgres

pytestmark = pytest.mark.slow

STEPS = 100
EACH = 20  # metrics a step, one of which is refused


def values_of(step: int) -> list[float]:
    """What is recorded in a step; the last one is negative, and refused."""
    first = step * EACH + 1
    return [*range(first, first + EACH - 1), -(first + EACH - 1)]


def check(page: Page, scene: Scene) -> None:
    """Everything is stored or reported, once."""
    recorded = [value for step in range(STEPS) for value in values_of(step)]
    good = sorted(value for value in recorded if value > 0)
    refused = sorted(value for value in recorded if value < 0)

    def reported() -> list[float]:
        return sorted(report["metric"]["value"] for report in scene.site.reports)

    wait_for(page, lambda: len(scene.user.values) >= len(good) and len(reported()) >= len(refused), 120)
    page.wait_for_timeout(1000)  # for what must not come
    assert scene.user.values == good
    assert reported() == refused
    assert scene.site.drops == []
    assert page.evaluate("client.flush()") is True


@pytest.fixture
def ordeal(postgres: Postgres, site: Site) -> Iterator[tuple[Function, Callable[[BrowserContext], Scene]]]:
    url = postgres.clone()
    with running(url) as function:
        user = User(url)
        yield function, lambda context: Scene(context, site, RecordingProxy(function.server.url), user)


def test_nothing_is_lost_through_kills_reloads_and_networks(
    playwright: Playwright, tmp_path: Path, ordeal: tuple[Function, Callable[[BrowserContext], Scene]]
) -> None:
    function, scene_in = ordeal
    chromium = Chromium(playwright, tmp_path)
    chromium.start()
    try:
        scene = scene_in(chromium.context)
        tabs = [scene.open() for _ in range(2)]
        for step in range(STEPS):
            match step:
                case 5 | 25 | 45 | 65 | 85:
                    function.kill()
                case 8 | 28 | 48 | 68 | 88:
                    function.start()
                case 15 | 55:
                    scene.context.set_offline(True)
                case 20 | 60:
                    scene.context.set_offline(False)
                case 12 | 27 | 46 | 90:
                    scene.reload(tabs[step % 2])
                case 70 | 87:
                    tabs[0].wait_for_timeout(100)  # a metric is kept within a frame, not at once
                    chromium.kill()
                    chromium.start()
                    scene.context = chromium.context
                    tabs = [scene.open() for _ in range(2)]
            record(tabs[step % 2], *values_of(step))
            if step in (10, 26, 47, 75):  # also while the function is away
                tabs[step % 2].close()
                tabs[step % 2] = scene.open()
            tabs[0].wait_for_timeout(60)
        check(tabs[0], scene)
    finally:
        chromium.close()


def test_nothing_is_lost_without_indexeddb_as_long_as_the_pages_live(
    context: BrowserContext, site: Site, ordeal: tuple[Function, Callable[[BrowserContext], Scene]]
) -> None:
    """In a sandboxed page Chromium denies IndexedDB and locks."""
    site.headers["Content-Security-Policy"] = "sandbox allow-scripts"
    function, scene_in = ordeal
    scene = scene_in(context)
    tabs = [scene.open() for _ in range(2)]
    for step in range(STEPS):
        match step:
            case 5 | 25 | 45 | 65 | 85:
                function.kill()
            case 8 | 28 | 48 | 68 | 88:
                function.start()
            case 15 | 55:
                context.set_offline(True)
            case 20 | 60:
                context.set_offline(False)
        record(tabs[step % 2], *values_of(step))
        tabs[0].wait_for_timeout(60)
    check(tabs[0], scene)
