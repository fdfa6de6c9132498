"""Requests that no HTTP library would send."""

import socket
import time


def exchange(port: int, data: bytes, *, wait_s: float = 10, finish: bool = False) -> bytes:
    """Send the bytes and return what comes back: until the peer closes, or a whole answer is there, or time is up."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        received = b""
        try:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + wait_s
            while not complete(received) and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                piece = connection.recv(65_536)
                if not piece:
                    break
                received += piece
        except (TimeoutError, ConnectionError):
            pass
        return received


def complete(received: bytes) -> bool:
    """Whether an answer (not 100 Continue) has arrived as a whole, by its Content-Length."""
    head, end, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return complete(body)
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and bool(lengths) and len(body) >= lengths[0]


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST as bytes, with the headers as they are given."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
