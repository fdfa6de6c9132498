"""HTTP as bytes: requests that no HTTP library would send."""

import socket
import time


def exchange(port: int, data: bytes, *, wait_s: float = 10, finish: bool = False, until_closed: bool = False) -> bytes:
    """Send the bytes and return what comes back.

    Return when the peer closes, when a whole answer has arrived (not with `until_closed`), or after `wait_s`.
    `finish` closes the sending half after the last byte.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        received = b""
        try:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + wait_s
            while (until_closed or not complete(received)) and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                piece = connection.recv(65_536)
                if not piece:
                    break
                received += piece
        except (TimeoutError, ConnectionError):
            pass
        return received


def abandon(port: int, data: bytes, after_s: float = 0) -> None:
    """Send the bytes and close the connection without reading an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        time.sleep(after_s)


def complete(received: bytes) -> bool:
    """Whether an answer (not 100 Continue) has arrived as a whole, by its Content-Length."""
    head, end, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return complete(body)
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and bool(lengths) and len(body) >= lengths[0]


def head(path: str, length: int, *headers: str) -> bytes:
    """The head of a POST that announces a body of `length` bytes, with the headers as they are given."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST as bytes, with the headers as they are given."""
    return head(path, len(body), *headers) + body
