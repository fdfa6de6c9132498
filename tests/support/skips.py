"""The skips that a run with CI=true accepts (tests/skips.txt); any other would hide that a check was not made."""

import os
from functools import cache
from pathlib import Path

import pytest

LIST = Path(__file__).parents[1] / "skips.txt"


def fail_unlisted(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn the report of a skip into a failure that names its reason, if CI=true and the list does not have it."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(listed()):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped: {reason}\n{LIST.name} does not list this reason"


@cache
def listed() -> tuple[str, ...]:
    """How the listed reasons begin."""
    return tuple(line for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
