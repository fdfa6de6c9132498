"""The Docker engine of this machine, as the container tests use it: through its own commands."""

import json
import os
import shutil
import subprocess
import time
import uuid
from typing import Any

import requests

from support.processes import ROOT, eventually, free_port

FUNCTIONS = ("dashboard", "ingest", "ingest_batch", "ingest_otlp", "users")


def answers(*command: str) -> str:
    """Run a command; return why it does not work, or nothing."""
    if not shutil.which(command[0]):
        return f"there is no command {command[0]}"
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{' '.join(command)}: {done.stdout.strip().splitlines()[-1]}" if done.returncode else ""


def run(*command: str, check: bool = True, **environment: str) -> str:
    """Run a command to its end and return what it printed."""
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout.strip()


def docker(*arguments: str, check: bool = True) -> str:
    """Run the Docker client."""
    return run("docker", *arguments, check=check)


def inspect(name: str, template: str) -> Any:
    """One value of what Docker knows of a container or an image."""
    return json.loads(docker("inspect", "--format", "{{json " + template + "}}", name))


def address(container: str) -> str:
    """The base URL of a container whose port 8080 or PORT is published on loopback."""
    ports = inspect(container, ".NetworkSettings.Ports")
    return next(f"http://127.0.0.1:{bound[0]['HostPort']}" for bound in ports.values() if bound)


def wait_for_200(url: str, timeout_s: float = 30) -> None:
    """Wait until something answers there."""

    def answers_200() -> bool:
        try:
            return requests.get(url, timeout=5).ok
        except requests.ConnectionError:
            return False

    eventually(answers_200, timeout_s)


class Compose:
    """A Compose project of the tests' own: its own name, port, container names and volume."""

    def __init__(self, image: str) -> None:
        self.project = f"metrics-test-{uuid.uuid4().hex[:8]}"
        port, self.database_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.database = f"{self.project}-db"
        self._command = ("docker-compose",) if answers("docker", "compose", "version") else ("docker", "compose")
        ports = {"PORT": str(port), "DB_PORT": str(self.database_port)}
        self.cli_image = f"{image}-cli"
        self.environment = {"IMAGE": image, "CLI_IMAGE": self.cli_image, "DB_CONTAINER": self.database, **ports}

    def __call__(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Run a Compose command in the project."""
        variables = {**self.environment, **environment}
        return run(*self.command(*arguments), check=check, **variables)

    def command(self, *arguments: str) -> tuple[str, ...]:
        """A Compose command in the project, which needs its `environment`."""
        return (*self._command, "--project-name", self.project, *arguments)

    def up(self, *arguments: str) -> float:
        """Start what is not running; return the seconds until every function answered."""
        start = time.monotonic()
        self("up", "--detach", *arguments)
        for name in FUNCTIONS:
            wait_for_200(f"{self.url}/{name}/health", 60)
        return time.monotonic() - start

    def post(self, path: str, body: Any, **headers: str) -> requests.Response:
        """POST a JSON body to the gateway."""
        return requests.post(self.url + path, json=body, headers=headers, timeout=30)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return docker("ps", "--quiet", *self._labels(service)).split()

    def psql(self, sql: str) -> str:
        """Run SQL in the database's container, as the first README did. Images differ in where their psql looks."""
        socket = ("--env", "PGHOST=/var/run/postgresql")
        return docker("exec", *socket, self.database, "psql", "-U", "metrics_user", "-d", "metrics_db", "-Atc", sql)

    def _labels(self, service: str) -> tuple[str, ...]:
        return (
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        )  # fmt: skip
