"""schemathesis against the running emulator: each answer is one that the OpenAPI document describes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from support.emulator import emulator
from support.processes import BIN, ROOT, Postgres, query

# The same requests in each run, some hundreds; `make contract` asks for more, and new ones.
EXAMPLES = os.environ.get("CONTRACT_EXAMPLES")
EXTENT = ("--max-examples", EXAMPLES) if EXAMPLES else ("--max-examples", "25", "--seed", "1")
USER = {"user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "name": "Greg"}


@pytest.mark.slow
def test_every_answer_conforms_to_the_document(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.clone()
    with emulator(DATABASE_URL=url) as server:
        assert requests.post(f"{server.url}/users/", json=USER, timeout=10).status_code == 201
        contract = ROOT / "tests" / "fuzz" / "contract"
        config = ("--config-file", str(contract / "schemathesis.toml"))
        done = subprocess.run(
            [BIN / "schemathesis", *config, "run", f"{server.url}/openapi.json", *EXTENT, "--continue-on-failure"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(contract)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        sys.stdout.write(done.stdout)
        assert done.returncode == 0, done.stdout
        assert "Selected: 30/30" in done.stdout
        ((stored,),) = query(url, "SELECT count(*) FROM metrics")
        assert stored > 10  # not all was refused
        assert "internal error" not in server.log, server.log
