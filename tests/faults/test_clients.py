"""Clients that go away, send half, send slowly or never read: nothing is held for them, others are served meanwhile."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import requests

from faults.load import Load, locked, metric, post_all, register
from metrics_ingest.server.deadlines import BODY_TIMEOUT_S
from support.processes import Server, eventually, query

Serve = Callable[..., Server]


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


def worker(server: Server) -> psutil.Process:
    return psutil.Process(server.process.pid).children()[0]


def test_answers_that_nobody_waits_for_any_more(database_url: str, serve: Serve) -> None:
    server = serve("ingest", database_url, WRITE_LANES="1")
    user_id = register(database_url)
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    before = worker(server).num_fds(), worker(server).num_threads()
    with locked(database_url) as unlock:
        for _ in range(50):
            body = json.dumps(metric(user_id)).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head("/ingest/", len(body)) + body)
                time.sleep(0.005)
        unlock()
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    eventually(lambda: worker(server).num_fds() <= before[0])
    assert worker(server).num_threads() <= before[1]
    assert "Traceback" not in server.log


def test_client_that_goes_with_more_requests_behind(database_url: str, serve: Serve) -> None:
    """Its answers have nowhere to go. That is no error of the function's, and must not look like one."""
    server = serve("ingest", database_url)
    body = json.dumps(metric(register(database_url))).encode()
    with locked(database_url) as unlock:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall((head("/ingest/", len(body)) + body) * 3)
                time.sleep(0.02)
        unlock()
    assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
    time.sleep(0.2)
    assert [line for line in server.log.splitlines() if "ERROR" in line] == []


def test_slow_and_silent_senders(database_url: str, serve: Serve) -> None:
    """They are told 400 and let go after BODY_TIMEOUT_S."""
    server = serve("ingest", database_url, WRITE_LANES="1")
    user_id = register(database_url)
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    before = worker(server).num_fds()
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
        eventually(lambda: worker(server).num_fds() <= before)
    assert "Traceback" not in server.log


def test_clients_that_never_read(database_url: str, serve: Serve) -> None:
    """Each sends what has the largest answers, again and again; what cannot be sent does not pile up in memory."""
    server = serve("ingest_batch", database_url)
    user_id = register(database_url)
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
                        connection.send(head("/ingest_batch/", len(body)) + body)
                    except OSError:
                        continue
                time.sleep(0.02)

        push(30)
        early = worker(server).memory_info().rss
        push(60)
        assert worker(server).memory_info().rss - early < 20_000_000
        with Load(server.port, database_url, clients=5, batch=10) as load:
            time.sleep(1)
        load.check_all_stored()
        assert load.slowest < 2
    assert query(database_url, "SELECT count(*) FROM metrics WHERE user_id = :u", u=user_id) == [[0]]
