"""Send a batch so that nothing is lost and nothing is stored twice, whatever happens on the way."""

import os
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

# 503 is the service's own "not now"; 429, 502 and 504 are said by what may stand before it. The rest is final.
RETRY = Retry(
    total=8,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("POST",),  # safe, because each metric has an identity
    backoff_factor=0.5,
    backoff_jitter=0.5,
    respect_retry_after_header=True,
    raise_on_status=False,
)


def send(url: str, metrics: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Send the batch until it is answered. The key must be the same whenever the same metrics are sent."""
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        answer = session.post(f"{url}/ingest_batch/", json=metrics, headers={"Idempotency-Key": key}, timeout=15)
    if answer.headers["Content-Type"] != "application/json":  # a problem: nothing of the batch was stored
        answer.raise_for_status()
    report: dict[str, Any] = answer.json()
    return report


if __name__ == "__main__":
    user_id = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
    now = datetime.now(UTC).isoformat()
    metric = {"user_id": user_id, "metric_type": "talked_time", "timestamp": now}
    report = send(
        os.environ.get("METRICS_URL", "http://localhost:8000"),
        [metric | {"value": value} for value in (1.5, 2.5, 3.5)],
        key=str(uuid.uuid4()),  # kept with the metrics until they are answered
    )
    sys.stdout.write(f"{report['message']}, {report['duplicates']} had been stored before\n")
    for error in report["errors"]:  # to be mended, or dropped: sent again as they are, they will be refused again
        sys.stdout.write(f"metric {error['index']}: {error['detail']}\n")
