"""The image: what is in it, and that it runs under the restrictions of a cloud."""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from containers.engine import FUNCTIONS, Compose, address, answers, docker, inspect, wait_for_200
from support.metrics import metric
from support.processes import ROOT, eventually

NO_DATABASE = ("--env", "DATABASE_URL=postgresql://nobody@127.0.0.1/none")
PUBLISHED = ("--publish", "127.0.0.1::8080")
CLOUD_RUN = (
    "--read-only", "--tmpfs", "/tmp", "--memory", "512m", "--cpus", "1", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--env", "PORT=8081", "--publish", "127.0.0.1::8081",
    "--env", "K_SERVICE=metrics-ingest", "--env", "K_REVISION=metrics-ingest-00001-abc",
    "--env", "K_CONFIGURATION=metrics-ingest", "--env", "CLOUD_RUN_TIMEOUT_SECONDS=30", "--env", "WRITE_TIMEOUT_S=8",
)  # fmt: skip


def in_image(image: str, *command: str) -> str:
    return docker("run", "--rm", "--entrypoint", command[0], image, *command[1:])


def test_it_runs_as_a_user_without_rights_who_has_a_name(image: str) -> None:
    assert inspect(image, ".Config.User").isdigit()
    assert in_image(image, "id", "-un") == "app"
    assert in_image(image, "sh", "-c", "touch /app/x /usr/local/x 2>&1; true").count("Permission denied") == 2


def test_it_holds_exactly_the_locked_versions(image: str) -> None:
    code = "from importlib.metadata import distributions as d; [print(f'{x.name}=={x.version}'.lower()) for x in d()]"
    installed = set(in_image(image, "/app/venv/bin/python", "-c", code).replace("_", "-").split())
    locked = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    ours = {line for line in installed if line.startswith("metrics-ingest==")}
    assert len(ours) == 1
    assert installed - ours <= locked
    for_others = {
        "async-timeout",
        "colorama",
        "exceptiongroup",
        "importlib-metadata",
        "lazy-importer",
        "tzdata",
        "zipp",
    }
    assert {line.partition("==")[0] for line in locked - installed} <= for_others  # other systems, other Pythons


def test_no_compiler_and_no_installer_is_left_in_it(image: str) -> None:
    assert in_image(image, "sh", "-c", "for tool in gcc cc g++ make; do command -v $tool; done; true") == ""
    assert in_image(image, "sh", "-c", "ls /app/venv/bin | grep -E '^(pip|uv$|hatchling)'; true") == ""


def test_everything_is_compiled_because_nothing_can_be_at_run_time(image: str) -> None:
    code = (
        "import pathlib, importlib.util as u\n"
        "for root in ('/app', '/usr/local/lib/python3.13/asyncio', '/usr/local/lib/python3.13/json'):\n"
        "    for path in pathlib.Path(root).rglob('*.py'):\n"
        "        if not pathlib.Path(u.cache_from_source(path)).exists(): print(path)"
    )
    assert in_image(image, "python", "-c", code) == ""


def test_nothing_of_the_building_machine_is_in_its_configuration(image: str) -> None:
    environment = " ".join(inspect(image, ".Config.Env"))
    assert "PIP_" not in environment
    assert "http" not in environment


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_image_is_every_function(container: Callable[..., str], name: str) -> None:
    """… by FUNCTION_TARGET and FUNCTION_SOURCE."""
    chosen = ("--env", f"FUNCTION_TARGET={name}", "--env", f"FUNCTION_SOURCE=/app/functions/{name}/main.py")
    one = container(*NO_DATABASE, *PUBLISHED, "--env", "ALLOW_ANONYMOUS=true", *chosen)
    wait_for_200(address(one))
    assert requests.get(address(one), timeout=5).json()["function"] == name


def test_its_health_check_passes_when_the_function_answers_and_fails_when_not(container: Callable[..., str]) -> None:
    one = container(*NO_DATABASE, *PUBLISHED, "--env", "ALLOW_ANONYMOUS=true")
    wait_for_200(address(one))
    check = inspect(one, ".Config.Healthcheck.Test")
    assert check[0] == "CMD"
    assert not answers("docker", "exec", one, *check[1:])
    assert answers("docker", "exec", "--env", "PORT=9", one, *check[1:])


def test_it_refuses_to_start_open_to_all_by_oversight(container: Callable[..., str]) -> None:
    one = container(*NO_DATABASE)
    assert docker("wait", one) != "0"
    assert "API_KEYS is not set" in docker("logs", one)


def test_it_starts_as_cloud_run_starts_it(container: Callable[..., str]) -> None:
    """Its port, its variables, a file system that is read-only but for /tmp, no rights, one CPU and 512 MiB."""
    one = container(*NO_DATABASE, *CLOUD_RUN, "--env", "ALLOW_ANONYMOUS=true")
    start = time.monotonic()
    wait_for_200(address(one))
    assert time.monotonic() - start < 10
    assert "rror" not in docker("logs", one)
    docker("stop", "--time", "10", one)
    assert inspect(one, ".State.ExitCode") == 0


def test_sigterm_lets_what_is_being_written_be_written(compose: Compose, container: Callable[..., str]) -> None:
    """A metric whose commit waits on a lock when the instance gets SIGTERM is still stored and answered."""
    user_id = compose.post("/users/", {"name": "Greg"}).json()["user_id"]
    network = next(iter(inspect(compose.database, ".NetworkSettings.Networks")))
    database = ("--env", "DATABASE_URL=postgresql://metrics_user:metrics_password@db/metrics_db?sslmode=disable")
    one = container(*database, *CLOUD_RUN, "--network", network, "--env", "ALLOW_ANONYMOUS=true")
    wait_for_200(address(one) + "/health")
    answer: list[Any] = []
    url = address(one)
    send = threading.Thread(target=lambda: answer.append(requests.post(url, json=metric(user_id), timeout=20)))
    lock = "BEGIN; LOCK users IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT"
    hold = threading.Thread(target=compose.psql, args=(lock,))
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'metrics-ingest'"
    hold.start()
    eventually(lambda: compose.psql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'") != "0", 10)
    send.start()
    eventually(lambda: compose.psql(f"{ours} AND wait_event_type = 'Lock'") != "0", 10)
    start = time.monotonic()
    docker("stop", "--time", "10", one)
    assert time.monotonic() - start < 10
    assert inspect(one, ".State.ExitCode") == 0
    send.join(20)
    hold.join(20)
    assert [reply.status_code for reply in answer] == [200]
    assert compose.psql(f"SELECT count(*) FROM metrics WHERE user_id = '{user_id}'") == "1"


def test_the_migration_job_is_the_same_image_and_may_run_at_once_with_itself(
    compose: Compose, container: Callable[..., str]
) -> None:
    compose.psql("CREATE DATABASE fresh")
    network = next(iter(inspect(compose.database, ".NetworkSettings.Networks")))
    url = "DATABASE_URL=postgresql://metrics_user:metrics_password@db/fresh?sslmode=disable"
    arguments = ("--network", network, "--env", url, "--read-only", "--tmpfs", "/tmp")
    jobs = [container(*arguments, command=("metrics-ingest", "migrate")) for _ in range(3)]
    assert [docker("wait", job) for job in jobs] == ["0", "0", "0"], [docker("logs", job) for job in jobs]
    said = "\n".join(docker("logs", job) for job in jobs)
    assert said.count("applied 0001") == 1
    assert said.count("up to date") == 2


def test_a_role_that_may_call_two_functions_is_all_that_the_functions_need(
    compose: Compose, container: Callable[..., str]
) -> None:
    """The role that WRITER_PASSWORD lets log in is enough, and has no table."""
    role = "metrics_writer"
    user_id = compose.post("/users/", {"name": "Greg"}).json()["user_id"]
    network = next(iter(inspect(compose.database, ".NetworkSettings.Networks")))
    database = ("--env", f"DATABASE_URL=postgresql://{role}:writer_password@db/metrics_db?sslmode=disable")
    one = container(*database, *PUBLISHED, "--network", network, "--env", "ALLOW_ANONYMOUS=true")
    wait_for_200(address(one) + "/health")
    assert requests.post(address(one), json=metric(user_id), timeout=10).status_code == 200
    assert compose.psql(f"SELECT has_table_privilege('{role}', 'metrics', 'SELECT, INSERT, UPDATE, DELETE')") == "f"
