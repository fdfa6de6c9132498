"""What is installed: pinned with hashes, each with its reason, and looked up in the database of advisories."""

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from support.processes import ROOT, free_port

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0].lower()


def test_every_dependency_has_its_reason_and_nothing_else_has() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    described = re.findall(
        r"^\| \[([a-z0-9-]+)\]", page.partition("## Run time")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert sorted(described) == sorted(name_of(requirement) for requirement in PROJECT["dependencies"])
    extras = page.partition("## Extras")[2].partition("\n## ")[0]
    described = re.findall(r"\[([a-z0-9-]+)\]\(", extras)
    wanted = {name_of(each) for extra in PROJECT["optional-dependencies"].values() for each in extra}
    assert set(described) == wanted


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = re.findall(r"^[A-Za-z0-9].*(?:\n    .*)*", text, re.MULTILINE)
    assert len(pins) > 10
    for pin in pins:
        assert re.match(r"[a-z0-9._-]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_holds_every_dependency(lock: str) -> None:
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} <= pinned


def test_everything_is_installed_by_hash() -> None:
    """By `make install` and by the image."""
    for file in ("Makefile", "Dockerfile"):
        commands = [line for line in (ROOT / file).read_text().splitlines() if re.search(r"install .*-r ", line)]
        assert commands, file
        assert all("--require-hashes" in line for line in commands), commands


def audit(url: str, lock: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "audit.py"), str(lock)]
    return subprocess.run(command, env={"OSV_URL": url}, capture_output=True, text=True, timeout=60)


@pytest.fixture
def osv() -> Iterator[str]:
    """A database of advisories that knows one: of bad 1.0."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            bad = {"package": {"name": "bad", "ecosystem": "PyPI"}, "version": "1.0"}
            answer = {"results": [{"vulns": [{"id": "PYSEC-1"}]} if query == bad else {} for query in queries]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("version", "code", "message"), [("1.0", 1, "bad 1.0: PYSEC-1"), ("1.1", 0, "0 of 2")])
def test_audit_tells_of_a_known_vulnerability(osv: str, tmp_path: Path, version: str, code: int, message: str) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text(
        f"bad=={version} ; python_version < '4' \\\n    --hash=sha256:0\ngood==2.0 \\\n    --hash=sha256:0\n"
    )
    result = audit(osv, lock)
    assert (result.returncode, result.stderr) == (code, "")
    assert message in result.stdout


def test_audit_says_when_it_could_not_ask() -> None:
    result = audit(f"http://127.0.0.1:{free_port()}", ROOT / "requirements.lock")
    assert result.returncode == 2
    assert result.stderr.startswith("audit: NOT DONE, the database of advisories at ")
    assert len(result.stderr.splitlines()) == 1
