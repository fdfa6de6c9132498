"""ingest_otlp starts hardly later than ingest, although it imports protobuf."""

import os
import resource
import subprocess
import sys

import pytest

from support.processes import ROOT

MOST_MS = 60
LOAD = "from functions_framework import create_app; create_app('{0}', 'functions/{0}/main.py', 'http')"


def load_ms(name: str) -> float:
    """The CPU time of loading a function as the framework does. Unlike the time by a clock, others do not delay it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "DATABASE_URL": "postgresql://nobody@localhost/none", "ALLOW_ANONYMOUS": "true"}
    command = [sys.executable, "-c", LOAD.format(name)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1_000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@pytest.mark.alone
@pytest.mark.slow
def test_start_takes_at_most_60_ms_more_than_that_of_ingest() -> None:
    times = [(load_ms("ingest"), load_ms("ingest_otlp")) for _ in range(6)]
    plain, otlp = map(min, zip(*times, strict=True))
    assert otlp - plain <= MOST_MS, times


def test_only_ingest_otlp_imports_protobuf() -> None:
    for name in ("ingest", "ingest_batch", "users"):
        program = LOAD.format(name) + "; import sys; sys.exit('google.protobuf' in sys.modules)"
        environment = {**os.environ, "DATABASE_URL": "postgresql://nobody@localhost/none", "ALLOW_ANONYMOUS": "true"}
        command = [sys.executable, "-c", program]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
