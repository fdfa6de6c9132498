"""docs/scaling.md says what benchmarks/capacity.py computes, and that is checked against what was measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def capacity(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.capacity", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_predictions_are_near_the_measured_rates() -> None:
    shares = [float(share) for share in re.findall(r"([0-9.]+) of it", capacity("--check"))]
    assert len(shares) == 4  # metrics alone and in batches, on one PostgreSQL and on Citus
    assert 0.7 < min(shares) <= max(shares) < 1.1
    text = (ROOT / "docs/scaling.md").read_text()
    assert f"the measured rates are {min(shares)} to {max(shares)} of the computed ones" in text


@pytest.mark.parametrize(
    ("load", "rate", "expected"),
    [
        ("batches", "100000", "function processes 1; database one PostgreSQL, 2 cores; connections 2; "),
        ("singles", "100000", "function processes 10; database one PostgreSQL, 5 cores; connections 20; "),
        ("batches", "1e6", "database 2 workers of 16 cores, coordinator 4 cores; connections 40; "),
    ],
)
def test_the_table_has_what_is_computed(load: str, rate: str, expected: str) -> None:
    assert expected in capacity("--load", load, rate)
