"""What is published: small, current, typed, and complete."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Playwright

from clients.browsers import FILES, Scene, Site, User, wait_for
from support.chromium import chromium
from support.emulator import emulator

BUILT = ("metrics-ingest.js", "metrics-ingest.classic.js")
NODE = shutil.which("node")


@pytest.mark.parametrize("name", BUILT)
def test_what_a_page_loads_has_at_most_3_kb_gzipped(name: str) -> None:
    assert len(gzip.compress((FILES / name).read_bytes(), 9)) <= 3000


@pytest.mark.skipif(NODE is None, reason="no Node.js is installed on this machine")
def test_the_built_files_are_those_of_the_source(tmp_path: Path) -> None:
    for name in ("build.js", "package.json", "source"):
        copy = shutil.copytree if (FILES / name).is_dir() else shutil.copy
        copy(FILES / name, tmp_path / name)
    subprocess.run(["node", str(tmp_path / "build.js")], check=True)
    for name in BUILT:
        assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes(), f"{name}: run node build.js"


def test_the_package_names_files_that_exist() -> None:
    package = json.loads((FILES / "package.json").read_text())
    assert package["license"] == "Apache-2.0"
    named = [*package["files"], package["main"], package["types"], package["unpkg"], package["jsdelivr"]]
    named += [*package["exports"]["."].values(), package["exports"]["./classic"]]
    for name in named:
        assert (FILES / name).exists(), name


def test_the_classic_script_makes_the_same_client(scene: Scene) -> None:
    page = scene.visit()
    page.add_script_tag(url="/metrics-ingest.classic.js")
    page.evaluate(
        "options => { MetricsIngest.createClient(options).record('talked_time', 1) }",
        {"url": scene.proxy.url, "userId": scene.user.id, "flushMs": 100},
    )
    wait_for(page, lambda: scene.user.values == [1])


def test_the_three_lines_of_the_readme_work_with_the_emulator(
    context: BrowserContext, site: Site, database_url: str
) -> None:
    """From a page of another origin that CORS_ORIGINS allows by a pattern."""
    html = (FILES / "README.md").read_text().partition("```html\n")[2].partition("```")[0]
    user = User(database_url)
    with emulator(DATABASE_URL=database_url, CORS_ORIGINS="http://127.0.0.1:*") as server:
        for old, new in (("http://localhost:8000", server.url), ("b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", user.id)):
            assert old in html
            html = html.replace(old, new)
        page = context.new_page()
        page.goto(site.url)
        page.set_content(html)
        page.click("button")
        wait_for(page, lambda: user.values == [12.5])


def test_the_voice_example_records_what_the_microphone_hears(playwright: Playwright, scene: Scene) -> None:
    """Chromium's fake microphone beeps twice a second, so that the talk ends with the recording."""
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    own = playwright.chromium.launch(executable_path=chromium(), args=arguments)
    try:
        page = own.new_page()
        page.goto(f"{scene.site.url}examples/voice.html")
        page.fill("#url", scene.proxy.url)
        page.fill("#user", scene.user.id)
        page.click("#start")
        page.wait_for_selector("li:has-text('microphone_used')")
        page.wait_for_function("document.getElementById('level').value > 0.1")
        page.wait_for_timeout(1000)
        page.click("#stop")
        page.wait_for_selector("li:has-text('everything is stored')", timeout=20_000)
        shown = [text.partition(" = ")[0] for text in page.locator("li").all_inner_texts()]
        assert shown == [
            "everything is stored", "microphone_used", "voice_sentiment", "talked_time", "microphone_used"
        ]  # fmt: skip
        assert len(scene.user.values) == 4
    finally:
        own.close()
