"""The examples of clients that retry, through everything that may go wrong on the way."""

import os
import subprocess
import sys

import pytest
import requests

from support.processes import ROOT, Stack
from support.proxy import Proxy

USER_ID = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
# What a proxy does to a request: bytes are the answer instead of the function's, None loses the function's answer.
NO_ANSWER = b""
ANSWER_LOST = None
CUT_SHORT = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"message": "3 of'
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("troubles", "told"),
    [
        ((), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((NO_ANSWER, UNAVAILABLE), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((ANSWER_LOST,), "0 of 3 metrics stored, 3 had been stored before\n"),
        ((CUT_SHORT,), "3 of 3 metrics stored, 0 had been stored before\n"),
        ((UNAVAILABLE, ANSWER_LOST, CUT_SHORT, NO_ANSWER), "0 of 3 metrics stored, 3 had been stored before\n"),
    ],
)
@pytest.mark.parametrize("example", ["retry.py", "client.py"])
def test_example_stores_everything_once(
    stack: Stack, troubles: tuple[bytes | None, ...], told: str, example: str
) -> None:
    requests.post(stack.users.url, json={"user_id": USER_ID, "name": "Greg"}, timeout=10)
    before = len(stack.stored(USER_ID))
    with Proxy(stack.ingest_batch.url) as proxy:
        proxy.answer_next(*troubles)
        environment = {"PATH": os.environ["PATH"], "METRICS_URL": proxy.url}
        command = [sys.executable, "-W", "error", str(ROOT / "examples" / example)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert proxy.unused_answers == 0
    assert done.stdout == (told if example == "retry.py" else "3 metrics stored\n")
    assert len(stack.stored(USER_ID)) == before + 3
