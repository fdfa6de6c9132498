"""Clients that disconnect, send half, send slowly or never read cost nothing lasting and hold up nobody else."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests

from faults.load import Load, locked, post_all
from metrics_ingest.server.deadlines import BODY_TIMEOUT_S
from support.memory import resident_bytes
from support.metrics import metric, register
from support.processes import Server, eventually, query
from support.raw import abandon, head, post

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def test_disconnected_clients_leave_no_descriptor_and_no_thread(database_url: str, serve: Serve) -> None:
    server = serve("ingest", database_url, WRITE_LANES="1")
    user_id = register(database_url)
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    before = server.workers[0].num_fds(), server.workers[0].num_threads()
    with locked(database_url) as unlock:
        for _ in range(50):
            abandon(server.port, post("/ingest/", json.dumps(metric(user_id)).encode()), after_s=0.005)
        unlock()
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    eventually(lambda: server.workers[0].num_fds() <= before[0])
    assert server.workers[0].num_threads() <= before[1]
    assert "Traceback" not in server.log


def test_client_that_disconnects_with_more_requests_sent_is_no_error(database_url: str, serve: Serve) -> None:
    """Its answers cannot be sent. The log has no error, because the function made none."""
    server = serve("ingest", database_url)
    body = json.dumps(metric(register(database_url))).encode()
    with locked(database_url) as unlock:
        for _ in range(10):
            abandon(server.port, post("/ingest/", body) * 3, after_s=0.02)
        unlock()
    assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
    time.sleep(0.2)
    assert [line for line in server.log.splitlines() if "ERROR" in line] == []


def test_slow_and_silent_senders_get_400_and_their_connection_is_closed(database_url: str, serve: Serve) -> None:
    """After BODY_TIMEOUT_S, and meanwhile others are served."""
    server = serve("ingest", database_url, WRITE_LANES="1")
    user_id = register(database_url)
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    before = server.workers[0].num_fds()
    stop = threading.Event()
    with ExitStack() as stack:
        silent, half, slow = (
            [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(20)]
            for _ in range(3)
        )
        gone = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for connection in (*silent, *half, *slow, *gone):
            connection.sendall(head("/ingest/", 200))
        for connection in (*half, *gone):
            connection.sendall(b'{"user_id":')
        for connection in gone:
            connection.close()

        def drip() -> None:
            while not stop.wait(1):
                for connection in slow:
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        with Load(server.port, database_url, clients=10) as load:
            time.sleep(2)
        load.check_all_stored()
        assert load.slowest < 2
        for connection in (*silent, *half):
            connection.settimeout(BODY_TIMEOUT_S + 5)
            with connection.makefile("rb") as stream:
                reply = stream.read()  # to the end: it closes the connection
            assert reply.startswith(b"HTTP/1.1 400 ")
            assert b'"code":"malformed_json"' in reply
        stop.set()
        dripping.join()
        eventually(lambda: server.workers[0].num_fds() <= before)
    assert "Traceback" not in server.log


def test_clients_that_never_read_use_bounded_memory(database_url: str, serve: Serve) -> None:
    """Each sends the request with the largest answer again and again; answers that cannot be sent do not pile up."""
    server = serve("ingest_batch", database_url)
    body = b"[" + b",".join([b"{}"] * 2000) + b"]"
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(5)]
        for connection in connections:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def push(times: int) -> None:
            for _ in range(times):
                for connection in connections:
                    try:
                        connection.send(post("/ingest_batch/", body))
                    except OSError:
                        continue
                time.sleep(0.02)

        push(30)
        early = resident_bytes(server)
        push(60)
        assert resident_bytes(server) - early < 20_000_000
        with Load(server.port, database_url, clients=5, batch=10) as load:
            time.sleep(1)
        load.check_all_stored()
        assert load.slowest < 2
    assert query(database_url, "SELECT count(*) FROM metrics") == [[len(load.acknowledged)]]
