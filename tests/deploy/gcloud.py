"""A stand-in for gcloud that records its commands, and deploy/deploy.sh run with it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.processes import ROOT

# Answers `describe` by what was created before; fails when the command begins with $GCLOUD_FAILS.
GCLOUD = r"""#!/bin/sh
{ printf '%s\037' "$@"; printf '\036'; } >>"$GCLOUD_LOG"
known=$GCLOUD_LOG.known
case "$*" in *--data-file=-*) cat >/dev/null ;; esac
[ -e "$known" ] || printf '%s\n' $GCLOUD_HAS >"$known"
for word; do
  case $word in --tag=*) built=${word#--tag=} ;; -*) ;; *) plain="$plain$word " last=${word%%@*} ;; esac
done
if [ -n "$GCLOUD_FAILS" ]; then case $plain in "$GCLOUD_FAILS"*) exit 1 ;; esac; fi
case $plain in
  *" create "*) echo "$last" >>"$known" ;;
  "builds submit "*) echo "$built" >>"$known" ;;
  "run revisions list "*) printf '%s\n' $GCLOUD_REVISIONS ;;
  "run services describe "*) echo "https://$last-abc-ew.a.run.app" ;;
  *" describe "*) grep -qxF -e "$last" "$known" ;;
esac
"""
HAVE = "metrics-db-password metrics-api-keys metrics-read-keys"


@dataclass
class Run:
    """What a run of the script came to."""

    code: int
    said: str
    errors: str
    commands: list[list[str]]
    manifests: Path

    @property
    def verbs(self) -> list[str]:
        """Each command without its flags."""
        return [" ".join(word for word in command if not word.startswith("-")) for command in self.commands]


class Deployment:
    """A place to deploy from: its gcloud, and what that remembers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        stand_in = directory / "gcloud"
        stand_in.write_text(GCLOUD)
        stand_in.chmod(0o755)

    def __call__(self, *arguments: str, typed: str = "", **settings: str) -> Run:
        return self.run("deploy/deploy.sh", *arguments, typed=typed, **settings)

    def run(self, *command: str, typed: str = "", **settings: str) -> Run:
        """Run a command from the repository, and type an answer; the settings suffice unless they are overridden."""
        log = self.directory / "log"
        log.unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.directory}:{os.environ['PATH']}",
            "GCLOUD_LOG": str(log),
            "GCLOUD_HAS": HAVE,
            "MANIFESTS": str(self.directory / "manifests"),
            "PROJECT": "my-project",
            "REGION": "europe-west1",
            "INSTANCE": "metrics",
            "TAG": "abc123",
            **settings,
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, input=typed)
        recorded = log.read_text().split("\x1e")[:-1] if log.exists() else []
        commands = [command.split("\x1f")[:-1] for command in recorded]
        return Run(done.returncode, done.stdout, done.stderr, commands, self.directory / "manifests")


def yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text())
