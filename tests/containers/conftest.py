"""Real containers. Only a run that names this directory collects them (`make test-containers`): they take minutes."""

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from containers.engine import Compose, answers, docker


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Stay out of runs that did not ask for containers."""
    return None if any("containers" in argument for argument in config.args) else True


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The image, built from this checkout."""
    if reason := answers("docker", "version"):
        pytest.skip(f"no Docker engine answers: {reason}")
    tag = f"metrics-ingest:test-{uuid.uuid4().hex[:12]}"
    index = ("--build-arg", "PIP_INDEX_URL") if "PIP_INDEX_URL" in os.environ else ()
    docker("build", "--tag", tag, *index, ".")
    yield tag
    docker("rmi", tag, check=False)


@pytest.fixture
def container(image: str) -> Iterator[Callable[..., str]]:
    """Start containers of the image for one test: container(*docker_run_arguments) gives the id."""
    started = []

    def start(*arguments: str, command: tuple[str, ...] = ()) -> str:
        started.append(docker("run", "--detach", *arguments, image, *command))
        return started[-1]

    yield start
    for one in started:
        docker("rm", "--force", "--volumes", one, check=False)


@pytest.fixture(scope="session")
def compose(image: str) -> Iterator[Compose]:
    """The whole stack, running."""
    if (reason := answers("docker-compose", "version")) and answers("docker", "compose", "version"):
        pytest.skip(f"no Docker Compose: {reason}")
    stack = Compose(image)
    try:
        stack.up()
        yield stack
    finally:
        stack("down", "--volumes", "--timeout", "5", check=False)
        docker("rmi", stack.cli_image, check=False)
