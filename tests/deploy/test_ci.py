""".ci/run and its rule for skipped tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import ROOT
from support.skips import listed

TESTS = """
import pytest

def test_listed():
    pytest.skip({listed!r} + ", and more")

@pytest.mark.skipif(True, reason="no such tool")
def test_unlisted():
    pass
"""


def run(directory: Path, *names: str, **environment: str) -> tuple[int, str]:
    """Run the tests of a directory with the hooks of tests/conftest.py; return the exit code and the output."""
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    without = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [*command, "-c", os.devnull, *names],
        cwd=directory,
        env={**without, "PYTHONPATH": str(ROOT / "tests"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("module", [False, True], ids=["a test", "a module"])
def test_unlisted_skip_fails_a_run_of_ci_only(tmp_path: Path, module: bool) -> None:
    text = TESTS.format(listed=listed()[0])
    if module:
        text = "import pytest\npytest.importorskip('no_such_tool', reason='no such tool')\n"
    (tmp_path / "test_it.py").write_text(text)
    code, output = run(tmp_path)
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), output
    code, output = run(tmp_path, CI="true")
    assert code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED), output
    assert "was skipped: no such tool\nskips.txt does not list this reason" in output
    if not module:
        assert "1 skipped, 1 error" in output


def test_ci_runs_what_the_readme_names() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line.partition(" #")[0] for line in lines[-3:]] == ["make check", "make test", "make everything"]
    assert "set -euo pipefail" in lines


def test_scripts_are_clean_by_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck")
    scripts = [*ROOT.glob("deploy/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], text=True, capture_output=True)
    assert done.stdout == ""
