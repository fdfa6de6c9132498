"""API keys: who may call, and what the reply and the log reveal."""

import hashlib
import subprocess
from collections.abc import Iterator

import psutil
import pytest
import requests
from click.testing import CliRunner

from metrics_ingest import settings
from metrics_ingest.admin import cli
from metrics_ingest.admin.keys import new_key
from metrics_ingest.http.auth import authenticate
from support.emulator import emulator
from support.processes import BIN, ROOT, Postgres, Server, free_port, function
from support.raw import exchange, post

OLD, OLD_ENTRY = new_key("mobile-2025")
NEW, NEW_ENTRY = new_key("mobile")


@pytest.fixture(scope="module")
def locked(postgres: Postgres) -> Iterator[Server]:
    """A function with two live keys."""
    with function("ingest", postgres.clone(), API_KEYS=f"{OLD_ENTRY}, {NEW_ENTRY}", ALLOW_ANONYMOUS="false") as server:
        yield server
        for key in (OLD, NEW):
            assert key not in server.log


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {OLD}"},
        {"Authorization": f"bearer   {NEW}"},
        {"X-API-Key": NEW},
        {"X-API-Key": NEW, "Authorization": "Bearer a-token-of-the-platform"},
    ],
)
def test_every_live_key_opens_in_either_header(locked: Server, headers: dict[str, str]) -> None:
    answer = requests.post(locked.url, json={}, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_field")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": NEW},
        {"Authorization": f"Basic {NEW}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {NEW}x"},
        {"Authorization": f"Bearer {NEW}, Bearer {NEW}"},
        {"X-API-Key": ""},
        {"X-API-Key": NEW[:-1]},
        {"X-API-Key": NEW.lower()},
        {"X-API-Key": hashlib.sha256(NEW.encode()).hexdigest()},
        {"X-API-Key": "mobile"},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {NEW}"},
    ],
)
def test_all_else_is_401_and_says_how_to_do_it(locked: Server, headers: dict[str, str]) -> None:
    answer = requests.post(locked.url, json={}, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert NEW not in answer.text


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_401_does_not_wait_for_the_body(locked: Server, expect: tuple[str, ...]) -> None:
    head = post("/ingest/", b" " * 100, *expect)[:-100]
    assert exchange(locked.port, head, wait_s=5).startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_liveness_needs_no_key(locked: Server) -> None:
    assert requests.get(f"{locked.url}/health", timeout=10).json()["database"] == "ok"


def test_caller_is_known_by_the_name_of_its_key() -> None:
    keys = settings.Settings.from_environment(
        {"DATABASE_URL": "postgresql://u@localhost/d", "API_KEYS": f"{OLD_ENTRY},{NEW_ENTRY}"}
    ).api_keys
    assert authenticate({b"x-api-key": NEW.encode()}, keys) == "mobile"
    assert authenticate({b"authorization": b"Bearer " + OLD.encode()}, keys) == "mobile-2025"
    assert authenticate({}, ()) is None


def test_log_names_the_caller_and_not_its_key(locked: Server) -> None:
    requests.post(locked.url, json={}, headers={"X-API-Key": OLD}, timeout=10)
    assert '"key":"mobile-2025"' in locked.log
    assert OLD not in locked.log


def start(target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "functions-framework"), "--target", target, "--source", str(ROOT / f"functions/{target}/main.py")],
        env={"PATH": str(BIN), "HOST": "127.0.0.1", "PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("allow", [{}, {"ALLOW_ANONYMOUS": "false"}, {"ALLOW_ANONYMOUS": "yes"}])
def test_function_without_keys_refuses_to_start_in_one_line(allow: dict[str, str]) -> None:
    run = start("users", DATABASE_URL="postgresql://u:hunter2@localhost/d", **allow)
    assert run.returncode != 0
    (line,) = (run.stdout + run.stderr).strip().splitlines()
    assert line.startswith("metrics-ingest: ")
    assert "ALLOW_ANONYMOUS" in line


@pytest.mark.parametrize(
    "entries",
    ["mobile", "mobile:123", f"mobile:{'g' * 64}", f":{'a' * 64}", f"a b:{'a' * 64}", NEW],
    ids=["no digest", "short digest", "no digits", "no name", "a space", "the key itself"],
)
def test_api_keys_that_are_none_stop_the_start_and_are_not_repeated(entries: str) -> None:
    with pytest.raises(settings.BadSetting, match=r"^API_KEYS must be") as caught:
        settings.Settings.from_environment({"DATABASE_URL": "postgresql://u@localhost/d", "API_KEYS": entries})
    assert entries not in str(caught.value)


def test_command_prints_a_key_and_the_entry_that_admits_it() -> None:
    result = CliRunner().invoke(cli.main, ["key", "new", "--name", "mobile"])
    key, entry = (line.rpartition(": ")[2] for line in result.stdout.splitlines())
    assert entry == f"mobile:{hashlib.sha256(key.encode()).hexdigest()}"
    assert len(key) >= 43
    assert CliRunner().invoke(cli.main, ["key", "new", "--name", "mobile"]).stdout != result.stdout
    (known,) = settings.Settings.from_environment(
        {"DATABASE_URL": "postgresql://u@localhost/d", "API_KEYS": entry}
    ).api_keys
    assert known.name == "mobile"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "é", "x" * 65])
def test_command_refuses_a_name_that_could_not_stand_in_api_keys(name: str) -> None:
    result = CliRunner().invoke(cli.main, ["key", "new", "--name", name])
    assert result.exit_code == 2
    assert "mi_" not in result.output


def test_emulator_needs_no_key_and_is_reachable_from_this_machine_only(database_url: str) -> None:
    with emulator(DATABASE_URL=database_url) as server:
        open_to = {c.laddr.ip for c in psutil.Process(server.process.pid).net_connections() if c.status == "LISTEN"}
        assert open_to == {"127.0.0.1"}
        assert requests.post(f"{server.url}/users/", json={"name": "Greg"}, timeout=10).status_code == 201
