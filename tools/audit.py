"""`make audit`: look up the locked packages in OSV, a database of known vulnerabilities.

Only names and versions are sent. Exit codes: 0 no known vulnerability, 1 at least one, 2 the database did not answer.
"""

import http.client
import json
import os
import re
import sys
import urllib.request
from pathlib import Path

URL = os.environ.get("OSV_URL", "https://api.osv.dev")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def advisories(pins: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Return the ids of the advisories by (name, version), for those that have any.

    Raise OSError, HTTPException, ValueError or KeyError when the database does not answer as documented.
    """
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins]
    request = urllib.request.Request(
        f"{URL}/v1/querybatch", json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        results = json.load(answer)["results"]
    found = ([advisory["id"] for advisory in result.get("vulns", ())] for result in results)
    return {pin: ids for pin, ids in zip(pins, found, strict=True) if ids}


def main(files: list[str]) -> int:
    """Print the advisories for the versions in the lock files; return the exit code."""
    pins = sorted({pin for file in files for pin in PIN.findall(Path(file).read_text())})
    try:
        found = advisories(pins)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        sys.stderr.write(f"audit: NOT DONE, the database of advisories at {URL} did not answer: {error}\n")
        return 2
    for (name, version), ids in found.items():
        sys.stdout.write(f"{name} {version}: {', '.join(ids)}\n")
    sys.stdout.write(f"audit: {len(found)} of {len(pins)} locked packages have known vulnerabilities\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
