"""Send a batch of metrics with retries, so that each metric is stored exactly once."""

import os
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

# The service itself replies 503 when it is unavailable; 429, 502 and 504 come from proxies and load balancers in front
# of it. After any other status a retry gives the same reply.
ATTEMPTS = 8
RETRY = Retry(
    total=ATTEMPTS,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("POST",),  # safe, because a metric with the same key and position is stored once
    backoff_factor=0.5,
    backoff_jitter=0.5,
    respect_retry_after_header=True,
    raise_on_status=False,
)


def send(url: str, metrics: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Send the batch until there is a reply, and return it. Send the same metrics with the same key, always.

    Raise requests.HTTPError when the whole batch is refused, requests.RequestException when retries are used up.
    """
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        for attempt in range(ATTEMPTS):
            try:
                reply = session.post(f"{url}/ingest_batch/", json=metrics, headers={"Idempotency-Key": key}, timeout=15)
                break
            except requests.exceptions.ChunkedEncodingError:  # the reply was cut short; Retry does not see its body
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
    if reply.headers["Content-Type"] != "application/json":  # application/problem+json: nothing was stored
        reply.raise_for_status()
    report: dict[str, Any] = reply.json()
    return report


if __name__ == "__main__":
    user_id = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
    now = datetime.now(UTC).isoformat()
    metric = {"user_id": user_id, "metric_type": "talked_time", "timestamp": now}
    report = send(
        os.environ.get("METRICS_URL", "http://localhost:8000"),
        [metric | {"value": value} for value in (1.5, 2.5, 3.5)],
        key=str(uuid.uuid4()),  # save it with the metrics, and delete both after the reply
    )
    sys.stdout.write(f"{report['message']}, {report['duplicates']} had been stored before\n")
    for error in report["errors"]:  # fix these metrics, or drop them: a retry gives the same errors
        sys.stdout.write(f"metric {error['index']}: {error['detail']}\n")
