"""The documents as text, and a checkout that runs what they say."""

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.processes import BIN, ROOT, Server

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
README, CONTRIBUTING, API, CLI, CONFIGURATION = (
    (ROOT / name).read_text()
    for name in ("README.md", "CONTRIBUTING.md", "docs/api.md", "docs/cli.md", "docs/configuration.md")
)
MAKEFILES = "".join(path.read_text() for path in [ROOT / "Makefile", *ROOT.glob("*/*.mk"), *ROOT.glob("*/*/*.mk")])


def blocks(text: str, language: str = "sh") -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@dataclass
class Checkout:
    """A copy of the repository in which `make run` runs."""

    directory: Path
    port: int
    server: Server

    @property
    def database_url(self) -> str:
        """The embedded database; PostgreSQL writes port and socket directory into its lock file."""
        _, _, _, port, socket_directory, *_ = (self.directory / ".local/data/postmaster.pid").read_text().splitlines()
        return f"postgresql://postgres@/metrics_db?host={socket_directory}&port={port}"

    def shell(self, block: str, **environment: str) -> str:
        """Run a block as it stands, except for the port, and return what it prints."""
        script = block.replace("localhost:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["sh", "-euc", script], cwd=self.directory, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @staticmethod
    def end(server: Server) -> None:
        """End a server that a shell or make started, with all its processes."""
        os.killpg(server.process.pid, signal.SIGTERM)
        server.close()
