"""The documents are true: their shell blocks run as they stand, and they name what there is."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import requests

from metrics_ingest.admin.cli import main
from metrics_ingest.errors import CODES
from metrics_ingest.settings import LOG_LEVELS
from support.documents import API, CLI, CONFIGURATION, CONTRIBUTING, MAKEFILES, PAGES, README, Checkout, blocks
from support.processes import BIN, ROOT, Server, free_port

QUICK_START = README.partition("## Quick start")[2].partition("\n## ")[0]
yaml = pytest.importorskip("yaml")  # it comes with schemathesis, and has no types
STORED = '{"message":"Metric stored successfully!"}'


def matches(example: Any, answer: Any) -> bool:
    """Whether an answer is what a document shows; the text "…" stands for anything."""
    if isinstance(example, dict) and isinstance(answer, dict):
        return example.keys() == answer.keys() and all(matches(example[name], answer[name]) for name in example)
    if isinstance(example, list) and isinstance(answer, list):
        return len(example) == len(answer) and all(map(matches, example, answer))
    return bool(example in ("…", answer))


def test_the_quick_start_works_and_a_metric_sent_twice_is_stored_once(running: Checkout) -> None:
    run, register, ingest, look, test = blocks(QUICK_START)
    assert (run, test) == ("make run\n", "make test\n")
    assert json.loads(running.shell(register))["name"] == "Greg"
    assert [running.shell(ingest), running.shell(ingest)] == [STORED, STORED]
    row = running.shell(look)
    assert "talked_time" in row
    assert "(1 row)" in row


def test_the_picture_shows_what_happens(running: Checkout) -> None:
    """Each command of docs/images/terminal.svg runs, and prints what stands below it."""
    texts = ElementTree.parse(ROOT / "docs/images/terminal.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    lines = [(text.get("class") == "command", text.text or "") for text in texts]
    first = next(number for number, (is_command, _) in enumerate(lines) if is_command and number)
    shown = [line.replace(":8000", f":{running.port}") for _, line in lines[1:first] if line.strip("…")]
    assert lines[0] == (True, "$ make run")
    assert shown
    assert not set(shown) - set(running.server.log.splitlines())

    session = "\n".join(f"{'$' * is_command}\t{line}" for is_command, line in lines[first:])
    steps = re.findall(r"((?:^\$\t.*\n?)+)((?:^\t.*\n?)*)", session, re.MULTILINE)
    assert len(steps) == 3
    for command, output in steps:
        answer = running.shell(re.sub(r"^\$\t(\$ )?", "", command, flags=re.MULTILINE))
        expected = re.sub(r"^\t", "", output, flags=re.MULTILINE).strip("\n")
        assert re.fullmatch(re.escape(expected).replace("…", ".*"), answer.strip("\n")), answer


def test_every_block_of_the_readme_is_run_somewhere() -> None:
    """`docker compose up --build` is what tests/containers runs."""
    assert blocks(README) == [*blocks(QUICK_START), "docker compose up --build\n"]


def test_the_requests_of_the_api_page_get_the_replies_that_it_shows(registered: Checkout) -> None:
    array, lines, packed, strict, user, users, health = (json.loads(registered.shell(block)) for block in blocks(API))
    lenient_example, strict_example = map(json.loads, blocks(API, "json"))
    assert matches(lenient_example, array)
    assert (lines["stored"], packed["stored"]) == (2, 1)
    assert matches(strict_example, strict)
    assert user["email"] == "greg@gmail.com"
    assert (users["received"], users["created"]) == (2, 1)
    assert health["database"] == "ok"


def test_the_retries_of_the_api_page_are_those_of_the_example() -> None:
    (block,) = blocks(API, "python")
    assert block in (ROOT / "examples/retry.py").read_text()


def test_windows_quoting_is_what_its_command_prompt_reads(registered: Checkout) -> None:
    r"""A shell reads the lines alike: \" is a quotation mark inside double quotes, and ^ continues a line."""
    (block,) = blocks(API, "bat")
    assert not re.search(r"['$`%]", block)
    register, ingest = block.replace("^\n", "").splitlines()
    assert json.loads(registered.shell(register))["name"] == "Greg"
    assert registered.shell(ingest) == STORED


def test_a_function_runs_by_the_command_of_the_configuration_page(registered: Checkout) -> None:
    (block,) = blocks(CONFIGURATION)
    port = free_port()
    command = ["sh", "-euc", f"cd {registered.directory}; {block.replace('9001', str(port))}"]
    environment = {"DATABASE_URL": registered.database_url, "PATH": f"{BIN}:{os.environ['PATH']}"}
    server = Server(command, environment, port)
    try:
        server.wait_until_ready()
        assert requests.get(f"{server.url}/health", timeout=10).json()["database"] == "ok"
    finally:
        registered.end(server)


def test_the_commands_of_the_cli_page_do_what_it_says(registered: Checkout) -> None:
    def run(block: str) -> str:
        return registered.shell(block, DATABASE_URL=registered.database_url)

    add, change, retire, move = blocks(CLI)
    run(blocks(QUICK_START)[2])
    assert run(add)
    assert "heart_rate" in run(change)
    assert run("metrics-ingest type show heart_rate --json").count("300") == 1
    assert run(retire)
    assert json.loads(run("metrics-ingest type show heart_rate --json"))["retired_at"]
    moved = json.loads(run(move.rstrip() + " --json"))
    assert (moved["stored"], moved["rejected"]) == (0, 0)
    assert moved["duplicates"] == moved["received"] > 0


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", API.partition("## Errors")[2], re.MULTILINE)
    documented = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert documented == {code: status.value for code, status in CODES.items()}


def test_every_setting_is_documented_and_every_documented_setting_is_read() -> None:
    package = ROOT / "src/metrics_ingest"
    source = "".join((package / name).read_text() for name in ("settings.py", "local/emulator.py"))
    read = set(re.findall(r'"([A-Z][A-Z_]{3,})"', source)) - {*LOG_LEVELS, "POST", "HEAD"}
    assert {name for name in read if f"`{name}`" not in CONFIGURATION} == set()
    everything = "".join(path.read_text() for path in package.rglob("*.py"))
    rows = re.findall(r"^\| (`[A-Z].*?) \|", CONFIGURATION, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {name for name in documented if f'"{name}"' not in everything} == set()


def test_every_command_is_documented() -> None:
    rows = re.findall(r"^\| `([a-z]+)(?: ([^`]*))?` \|", CLI, re.MULTILINE)
    documented = {name: set(re.findall(r"[a-z]+", rest.split(" ")[0])) for name, rest in rows}
    context = click.Context(main)
    existing = {}
    for name in main.list_commands(context):
        _, command, _ = main.resolve_command(context, [name])
        existing[name] = set(command.list_commands(context)) if isinstance(command, click.Group) else set()
    kinds = {"duration", "counter", "gauge", "score", "flag"}
    assert {name: rest for name, rest in documented.items() if name not in kinds} == existing


def test_every_make_target_has_its_help_and_is_documented() -> None:
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILES, re.MULTILINE)).split())
    shown = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
    assert phony == set(re.findall(r"^  make (\S+)", shown, re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert name in phony, f"{page.name}: make {name}"
    assert phony - set(re.findall(r"`make ([a-z-]+)", CONTRIBUTING)) == set()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_exists(page: Path) -> None:
    """In backticks, from the repository's root, or from the package's or the page's own folder."""
    folders = (
        "admin|benchmarks|deploy|docs|examples|functions|http|local|migrations|model|server|src|storage|tests|tools"
    )
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        places = (ROOT, ROOT / "src/metrics_ingest", page.parent)
        assert any((place / path).exists() for place in places), path


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_pre_commit_runs_what_make_check_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = MAKEFILES.partition("\ncheck: install")[2].partition("\n\n")[0]
    commands = [line.replace("$(BIN)", ".venv/bin") for line in re.findall(r"^\t@(.*)$", recipe, re.MULTILINE)]
    assert commands
    assert [hook["entry"] for hook in repository["hooks"]] == commands


def test_the_workflow_runs_the_script_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert job["env"] == {"PYTHON": "python${{ matrix.python }}"}
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert "PYTHON ?=" in MAKEFILES  # so that the environment decides
