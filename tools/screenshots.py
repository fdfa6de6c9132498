"""Take the pictures of the documentation: `make screenshots`.

Starts an emulator on a database of its own, fills it with `make demo`, waits until the summaries are there by
themselves, and drives a Chromium over the dashboard.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.chromium import chromium
from support.emulator import emulator
from support.processes import ROOT, eventually

IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 200_000
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
TIME_ZONE = "Europe/Berlin"


def main() -> None:
    """Write every picture, and fail when one is too large."""
    with tempfile.TemporaryDirectory() as directory, emulator(Path(directory)) as server:
        environment = {**os.environ, "PORT": str(server.port)}
        subprocess.run(
            [sys.executable, "-m", "metrics_ingest.local.demo"], cwd=directory, env=environment, check=True
        )  # fmt: skip
        eventually(lambda: complete(server.url), 30)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
            take(browser, server.url)
            browser.close()


def complete(url: str) -> bool:
    """Whether the summaries include the last metric."""
    facts = requests.get(f"{url}/dashboard/api/freshness", timeout=10).json()
    return bool(facts["refreshed_at"] and facts["refreshed_at"] > facts["last_received_at"])


def take(browser: Browser, url: str) -> None:
    """Take the pictures."""
    user, session = longest_session(url)
    views: dict[str, tuple[str, dict[str, Any]]] = {
        "dashboard": ("overview?range=7d", {"viewport": WIDE}),
        "dashboard-dark": ("overview?range=7d", {"viewport": WIDE, "color_scheme": "dark"}),
        "dashboard-metrics": ("types?range=7d", {"viewport": WIDE}),
        "dashboard-session": (f"session?user={user}&session={session}", {"viewport": WIDE}),
        "dashboard-phone": ("overview?range=7d", {"viewport": PHONE, "device_scale_factor": 2}),
    }
    for name, (view, options) in views.items():
        context = browser.new_context(timezone_id=TIME_ZONE, locale="en-GB", **options)
        page = context.new_page()
        page.goto(f"{url}/dashboard/#/{view}")
        save(page, name, full=options["viewport"] == WIDE)
        context.close()
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url)
    page.locator(".state.ok").first.wait_for()
    save(page, "front-page", full=True)
    context.close()


def save(page: Page, name: str, *, full: bool) -> None:
    """Write one picture when the page is complete."""
    page.locator("main h1").first.wait_for()
    page.wait_for_load_state("networkidle")
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"screenshots: {path} is larger than {MOST_BYTES / 1000:.0f} kB")


def longest_session(url: str) -> tuple[str, str]:
    """A user and a session that show something: the one with most metrics of the user who talked most."""
    api = f"{url}/dashboard/api"
    user = requests.get(f"{api}/users", params={"order": "-talk_time", "limit": "1"}, timeout=10).json()["users"][0]
    found = requests.get(f"{api}/sessions", params={"user_id": user["user_id"]}, timeout=10).json()["sessions"]
    return user["user_id"], max(found, key=lambda one: one["metric_count"])["session_id"]


if __name__ == "__main__":
    main()
