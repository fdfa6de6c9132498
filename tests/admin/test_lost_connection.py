"""A command whose connection is reset, as by a crash of the server or a firewall, says so and exits with 3."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from support.console import Console

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST instead of FIN


@contextmanager
def resetting(url: str, after: bytes) -> Iterator[str]:
    """A proxy to the database that resets the client's connection as soon as it has sent `after`; its URL."""
    options = parse_qs(urlsplit(url).query)
    path = f"{options['host'][0]}/.s.PGSQL.{options['port'][0]}"

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    received = source.recv(65_536)
                    if not received:
                        return
                    if source is client and after in received:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        return
                    (server if source is client else client).sendall(received)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # the end of the test
                return
            threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        port = listener.getsockname()[1]
        yield f"postgresql://postgres@127.0.0.1:{port}/{urlsplit(url).path.strip('/')}?sslmode=disable"
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:  # they close what they have opened
            thread.join(5)


@pytest.mark.parametrize(
    ("command", "after"),
    [
        ("summaries refresh", b"refresh_"),
        ("partitions maintain", b"generate_series"),
        ("type list", b"FROM metric_types"),
        ("rejected summary", b"rejected_counts"),
        ("user list", b"FROM users"),
        ("export -o {file}", b"COPY"),
        ("user export -o {file}", b"COPY"),
        ("migrate", b"_yoyo_migration"),
        ("type list", b"search_path"),
    ],
)
def test_reset_connection_is_no_traceback(console: Console, tmp_path: Path, command: str, after: bytes) -> None:
    with resetting(console.url, after) as url:
        result = Console(url).run(*command.format(file=tmp_path / "file").split(), exit_code=3)
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
