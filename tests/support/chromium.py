"""Where Chromium is, for the tests that look at pages."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Return the path of an installed Chromium. Without one the tests fail, so that nobody takes them for passed."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "Chromium is needed for these tests: apt-get install chromium, or set CHROMIUM to its path"
    return found
