"""After `make run` the command works at once, on its database; a second `make run` says where the first is."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from metrics_ingest.admin.console import print_record
from metrics_ingest.settings import read_database
from support.emulator import COMMAND, emulator
from support.metrics import current
from support.processes import BIN, ROOT, Server, eventually, query

TOOL = str(BIN / "metrics-ingest")
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
WITHOUT = {name: value for name, value in os.environ.items() if name != "DATABASE_URL" and not name.startswith("PG")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkout")


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[Server]:
    with emulator(directory) as server:
        user = {"user_id": USER, "name": "Greg", "email": "greg@gmail.com"}
        assert requests.post(f"{server.url}/users/", json=user, timeout=10).status_code == 201
        yield server


def run(directory: Path, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([TOOL, *arguments], cwd=directory, env=WITHOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr
    return done


def on_terminal(directory: Path, *arguments: str) -> list[str]:
    """Run the command on a terminal of 80 columns and return the lines that it shows."""
    controller, terminal = pty.openpty()
    environment = {**WITHOUT, "COLUMNS": "80", "TERM": "dumb"}
    process = subprocess.Popen([TOOL, *arguments], cwd=directory, env=environment, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 65_536):
            shown += block
    except OSError:  # the other side is closed
        pass
    os.close(controller)
    assert process.wait(30) == 0, shown
    return shown.decode().replace("\r\n", "\n").splitlines()


def test_banner_prints_a_command_that_works(running: Server, directory: Path) -> None:
    (line,) = (line.strip() for line in running.log.splitlines() if line.endswith("--help"))
    done = subprocess.run(line, shell=True, cwd=directory, env=WITHOUT, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("Usage: metrics-ingest"), done.stderr


@pytest.mark.parametrize("below", [".", "a/b"])
def test_command_finds_the_database_and_says_so(running: Server, directory: Path, below: str) -> None:
    (directory / below).mkdir(parents=True, exist_ok=True)
    done = run(directory / below, "user", "show", USER, "--json")
    assert json.loads(done.stdout)["email"] == "greg@gmail.com"
    assert done.stderr == f"using the database of `make run` in {directory}\n"


def test_without_make_run_it_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path, "type", "list", exit_code=2)
    assert "DATABASE_URL is not set" in done.stderr
    assert "start `make run` here" in done.stderr


def test_named_database_comes_first(running: Server, directory: Path, database_url: str) -> None:
    environment = {**WITHOUT, "DATABASE_URL": database_url}
    done = subprocess.run([TOOL, "user", "list"], cwd=directory, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("no users\n", "")


@pytest.mark.parametrize("port", ["same", "other"])
def test_second_run_says_where_the_first_is(running: Server, directory: Path, port: str) -> None:
    environment = {**WITHOUT, "PORT": str(running.port) if port == "same" else "0"}
    done = subprocess.run(COMMAND, cwd=directory, env=environment, capture_output=True, text=True, timeout=30)
    process = running.process.pid
    assert done.stderr == f"metrics-ingest: `make run` is running already: {running.url}/ (process {process})\n"
    assert done.returncode == 1


def test_functions_log_in_as_roles_that_suffice(running: Server, directory: Path) -> None:
    assert requests.post(f"{running.url}/ingest/", json=current(USER), timeout=10).ok
    assert requests.get(f"{running.url}/dashboard/api/types", timeout=10).ok
    url = json.loads((directory / ".local/running.json").read_text())["database_url"]
    roles = "SELECT DISTINCT usename FROM pg_stat_activity WHERE usename ~ '^metrics_'"
    assert sorted(name for (name,) in query(url, roles)) == ["metrics_reader", "metrics_writer"]
    assert read_database({"DATABASE_URL": url}).user == "postgres"


def test_rejected_metrics_are_counted_though_few_are_kept(running: Server, directory: Path) -> None:
    answer = requests.post(f"{running.url}/ingest_batch/", json=[current(USER, value=-1)] * 2_000, timeout=30)
    assert answer.json()["rejected"] == 2_000

    def counted() -> bool:
        rows = json.loads(run(directory, "rejected", "summary", "--json").stdout)
        rejected = {row["code"]: row["rejected"] for row in rows}
        assert sum(row["kept"] for row in rows) <= 120
        return rejected == {"value_out_of_range": 1_000, "unlisted": 1_000}

    eventually(counted, 20)
    assert "cannot be replayed" in run(directory, "rejected", "summary").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("type", "list"),
        ("partitions", "list"),
        ("summaries", "status"),
        ("user", "list"),
        ("rejected", "summary"),
        ("user", "show", USER),
    ],
    ids=" ".join,
)
def test_output_fits_a_terminal(running: Server, directory: Path, arguments: tuple[str, ...]) -> None:
    lines = on_terminal(directory, *arguments)
    own = [
        line for line in lines if not line.startswith(("using the database", "warning", "  example", "  description"))
    ]
    assert max(map(len, own)) <= 80, lines
    assert not re.search(r"\d\d:\d\d:\d\d\.\d", "\n".join(own))  # times to the second


def test_questions_name_the_option_that_answers_them(running: Server, directory: Path) -> None:
    done = subprocess.run(
        [TOOL, "user", "forget", USER], cwd=directory, env=WITHOUT, capture_output=True, text=True, input="", timeout=30
    )
    assert done.returncode == 1
    assert "--yes does it without a question" in done.stderr
    assert "Aborted" not in done.stderr
    assert "name what to change" in run(directory, "type", "set", "talked_time", exit_code=2).stderr
    assert "is it talked_time?" in run(directory, "export", "--type", "talk_time", exit_code=1).stderr


def test_end_of_the_run_is_noticed(tmp_path: Path) -> None:
    with emulator(tmp_path) as server:
        assert run(tmp_path, "user", "list").stdout == "no users\n"
        server.kill()
        eventually(lambda: server.process.poll() is not None)
        assert "DATABASE_URL is not set" in run(tmp_path, "user", "list", exit_code=2).stderr


def test_installed_command_works_without_a_checkout(tmp_path: Path, database_url: str) -> None:
    """The wheel, which has the migrations in it, beside the dependencies that are installed here."""
    pip = [str(BIN / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *wheel], check=True, timeout=120)
    (built,) = tmp_path.glob("*.whl")
    own = tmp_path / "own"  # by --target, because --prefix would uninstall what is installed here
    subprocess.run([*pip, "install", "--no-deps", "--target", str(own), str(built)], check=True, timeout=120)
    environment = {**WITHOUT, "PYTHONPATH": str(own), "DATABASE_URL": database_url}
    for arguments, said in (("migrate", "nothing to do: the schema is up to date"), ("type list", "talked_time")):
        command = [str(own / "bin/metrics-ingest"), *arguments.split()]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert said in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2307.71, "2,307.71"),
        (60.0, "60"),
        (-0.5, "-0.5"),
        (0.1234567, "0.1235"),
        (1e-9, "1e-09"),
        (1e300, "1e+300"),
        (0.0, "0"),
    ],
)
def test_numbers_are_shown_as_people_write_them(capsys: pytest.CaptureFixture[str], value: float, shown: str) -> None:
    print_record({"value": value}, as_json=False, title="x")
    assert capsys.readouterr().out.split()[-1] == shown
