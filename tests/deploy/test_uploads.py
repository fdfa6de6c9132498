"""What is sent to builders: enough to build from, and nothing that misleads them."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.processes import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tracked files, with litter beside them, as untracked files of a new repository."""
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for litter in (".env", ".venv/lib/x.py", ".local/data/x", "functions/ingest/__pycache__/main.pyc", "src/x.key.txt"):
        (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / litter).touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def uploaded(checkout: Path, ignore_file: str) -> set[str]:
    """The files that gcloud would send: its ignore files have gitignore's syntax."""
    command = ["git", "ls-files", "--others", f"--exclude-from={ignore_file}"]
    (checkout / ".gitignore").unlink(missing_ok=True)
    return set(subprocess.check_output(command, cwd=checkout, text=True).splitlines())


MIGRATIONS = {"migrations/0001-create-tables.sql", "migrations/functions/citus/replace_for_citus.sql"}
NEEDED = {"pyproject.toml", "README.md", "LICENSE", "src/metrics_ingest/http/service.py"} | MIGRATIONS


def test_a_source_deployment_sends_the_package_and_the_functions(checkout: Path) -> None:
    sent = uploaded(checkout, ".gcloudignore")
    assert sent >= NEEDED | {
        f"functions/{name}/main.py" for name in ("dashboard", "ingest", "ingest_batch", "ingest_otlp", "users")
    }
    folders = {"src", "migrations", "functions"}
    assert {name.split("/")[0] for name in sent} == {"pyproject.toml", "README.md", "LICENSE", *folders}
    assert not [name for name in sent if "__pycache__" in name]


def test_the_buildpack_finds_what_it_asks_of_pyproject() -> None:
    """functions-framework by name, a build backend to install the package by, no requirements.txt beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert any(re.match(r"functions-framework\b", dependency) for dependency in project["project"]["dependencies"])
    assert project["build-system"]["build-backend"]
    assert not (ROOT / "requirements.txt").exists()


def test_an_image_build_sends_what_the_dockerfile_copies(checkout: Path) -> None:
    sent = uploaded(checkout, ".dockerignore")
    lines = re.findall(r"^COPY (?!--)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()}
    assert copied
    for source in copied:
        assert [name for name in sent if name == source or name.startswith(f"{source}/")], source
    assert "Dockerfile" in sent  # gcloud sends what this file lets through
    assert not [name for name in sent if name.startswith((".", "tests")) or "__pycache__" in name]
    assert {name for name in sent if name.startswith("deploy/")} == {"deploy/build.lock"}
