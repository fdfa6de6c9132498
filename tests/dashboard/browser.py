"""A real Chromium for the tests of the page, and a watch over what a page may never do."""

from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
RANGE = "from=2024-08-05T00:00:00.000Z&to=2024-08-10T00:00:00.000Z"


class Watched:
    """A page, and everything on it that must not be: errors, violations of its policy, requests to other hosts."""

    def __init__(self, browser: Browser, server: str, **options: Any) -> None:
        self.base = f"{server}/dashboard/"
        self.context = browser.new_context(**{"viewport": WIDE, "timezone_id": "Europe/Berlin", **options})
        self.context.set_default_timeout(10_000)
        self.faults: list[str] = []
        self.expected: tuple[str, ...] = ()  # words of console errors that belong to the test, such as a 401
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self._console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error('policy violated: ' + event.violatedDirective + ' ' + event.blockedURI))"
        )

    def open(self, address: str = "overview", heading: str | None = None) -> Page:
        """Go to a view, and wait until its figures are there."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.base}#/{address}")
        self.page.locator("main h1").first.wait_for()
        self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until the page asks for nothing."""
        self.page.wait_for_load_state("networkidle")

    def check(self) -> None:
        """Fail with what was wrong."""
        self.context.close()
        assert not self.faults, self.faults

    def axe(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{violation['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for violation in found
            for node in violation["nodes"]
            if violation["impact"] in ("serious", "critical")
        ]

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(word in text for word in self.expected):
            self.faults.append(f"{kind}: {text}")

    def _request(self, url: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws", "wss") and not url.startswith(self.base):
            self.faults.append(f"request to {url}")
