"""The README is true: its shell blocks run, and it names what there is."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metrics_ingest.errors import CODES
from metrics_ingest.settings import LOG_LEVELS
from support.processes import BIN, ROOT, Server, free_port

README = (ROOT / "README.md").read_text()
QUICK_START = README.partition("## Quick start")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a newcomer has it, but with the environment that is installed already."""
    directory = tmp_path_factory.mktemp("clone")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())
    (directory / ".venv").symlink_to(BIN.parent)
    os.utime(BIN.parent / "installed") if (BIN.parent / "installed").exists() else (BIN.parent / "installed").touch()
    return directory


@pytest.fixture(scope="module")
def running(clone: Path) -> Iterator[Server]:
    port = free_port()
    server = Server(["make", "--no-print-directory", "-C", str(clone), "run", f"PORT={port}"], {}, port)
    server.wait_until_ready(60)
    yield server
    os.killpg(server.process.pid, signal.SIGTERM)
    server.close()


def shell(block: str, clone: Path, server: Server) -> str:
    """Run a block word for word, but for the port."""
    script = block.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        ["sh", "-euc", script], cwd=clone, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": f"{BIN}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quick_start_works_word_for_word(clone: Path, running: Server) -> None:
    run, register, ingest, look, test = re.findall(r"^```sh\n(.*?)^```", QUICK_START, re.MULTILINE | re.DOTALL)
    assert (run, test) == ("make run\n", "make test\n")
    assert json.loads(shell(register, clone, running))["name"] == "Greg"
    assert shell(ingest, clone, running) == '{"message":"Metric stored successfully!"}'
    assert "talked_time" in shell(look, clone, running)
    assert "(1 row)" in shell(look, clone, running)


def test_batches_are_sent_word_for_word(clone: Path, running: Server) -> None:
    array, lines, packed = (json.loads(shell(block, clone, running)) for block in BLOCKS if "ingest_batch" in block)
    assert (array["stored"], array["errors"][0]["code"]) == (1, "value_out_of_range")
    assert (lines["stored"], packed["stored"]) == (2, 1)


def test_every_error_code_is_in_the_readme_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", README, re.MULTILINE)
    documented = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert documented == {code: status.value for code, status in CODES.items()}


def test_every_setting_is_in_the_readme() -> None:
    source = "".join((ROOT / "src/metrics_ingest" / name).read_text() for name in ("settings.py", "emulator.py"))
    read = set(re.findall(r'"([A-Z][A-Z_]{3,})"', source)) - {*LOG_LEVELS, "POST", "HEAD"}
    assert {name for name in read if f"`{name}`" not in README} == set()


def test_every_make_target_has_its_help() -> None:
    text = "".join(path.read_text() for path in [ROOT / "Makefile", *ROOT.glob("*/*.mk"), *ROOT.glob("*/*/*.mk")])
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split())
    shown = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
    assert phony == set(re.findall(r"^  make (\S+)", shown, re.MULTILINE))
    for name in re.findall(r"`make ([a-z-]+)", README):
        assert name in phony, name


def test_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
