"""Packages for Node.js that tests need, from a folder's package-lock.json."""

import fcntl
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def node_modules(directory: Path) -> Path:
    """Install the packages of the folder, once; return where they are. Skip the test where there is no Node."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node is not installed")
    lock, done = directory / "package-lock.json", directory / "node_modules/.package-lock.json"
    with lock.open("rb") as held:  # another process of the run may install them at this moment
        fcntl.flock(held, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=directory, check=True, timeout=300)
            done.touch()
    return directory / "node_modules"
