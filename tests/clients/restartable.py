"""A function that is there to be killed, and that comes back on the same port."""

from collections.abc import Iterator
from contextlib import contextmanager

from support.processes import BIN, ROOT, Server, free_port


class Function:
    """ingest_batch on one port, killed and started again."""

    def __init__(self, database_url: str) -> None:
        self.port = free_port()
        self._environment = {
            "DATABASE_URL": database_url, "ALLOW_ANONYMOUS": "true", "HOST": "127.0.0.1", "CORS_ORIGINS": "*",
        }  # fmt: skip
        self._command = [
            *(str(BIN / "functions-framework"), "--target", "ingest_batch", "--port", str(self.port)),
            *("--source", str(ROOT / "functions" / "ingest_batch" / "main.py")),
        ]
        self.start()

    def start(self) -> None:
        """Start it; return at once."""
        self.server = Server(self._command, self._environment, self.port)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        self.server.kill()
        self.server.close()


@contextmanager
def running(database_url: str) -> Iterator[Function]:
    """A function that is running meanwhile."""
    function = Function(database_url)
    try:
        function.server.wait_until_ready()
        yield function
    finally:
        function.server.close()
