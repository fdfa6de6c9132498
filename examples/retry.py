"""Send a batch of metrics with retries, so that each metric is stored exactly once."""

import os
import random
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import urllib3

# The service itself replies 503 when it is unavailable; 429, 502 and 504 come from proxies and load balancers in front
# of it. After any other status a retry gives the same reply.
RETRY_STATUSES = (429, 502, 503, 504)
ATTEMPTS = 9
MAX_PAUSE_S = 60
# The URL or a header is wrong; all other errors are the network's, and a retry may help.
MISUSE = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema)


def send(url: str, metrics: list[dict[str, Any]], key: str, api_key: str = "") -> dict[str, Any]:
    """Send the batch until there is a reply, and return it. Send the same metrics with the same key, always.

    Raise requests.HTTPError when the whole batch is refused, requests.RequestException or urllib3.exceptions.HTTPError
    when retries are used up.
    """
    headers = {"Idempotency-Key": key} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    for attempt in range(1, ATTEMPTS + 1):
        pause = min(0.5 * 2 ** (attempt - 1), MAX_PAUSE_S) * random.uniform(0.5, 1)
        try:
            # auth: else requests would replace the API key by the login that ~/.netrc has for the host.
            # allow_redirects: else it would follow a redirect with a GET.
            reply = requests.post(
                f"{url}/ingest_batch/", json=metrics, headers=headers, timeout=15, auth=_as_it_is, allow_redirects=False
            )
        except MISUSE:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError):  # also a reply that was cut
            if attempt == ATTEMPTS:
                raise
        else:
            if reply.status_code not in RETRY_STATUSES or attempt == ATTEMPTS:
                return _report(reply)
            pause = max(pause, _retry_after_s(reply.headers))
        time.sleep(pause)  # as the server asked, or longer each time, so that clients do not all return at once
    raise AssertionError("the last attempt returns or raises")


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _report(reply: requests.Response) -> dict[str, Any]:
    """Return the report about the batch. Raise requests.HTTPError for any other reply: nothing was stored."""
    if reply.headers.get("Content-Type", "").startswith("application/json"):
        body = reply.json()
        if isinstance(body, dict) and "received" in body:
            return body
    reply.raise_for_status()
    location = reply.headers.get("Location")
    reason = f"a redirect: use {location!r}" if location else "not a report of ingest_batch"
    raise requests.HTTPError(f"{reply.status_code} for {reply.url}: {reason}", response=reply)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Return what Retry-After asks for, in seconds: a number or a date; 0 if it is absent or not valid."""
    text = headers.get("Retry-After", "")
    try:
        if text.isdecimal():
            seconds = float(text)
        else:
            date = parsedate_to_datetime(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0
    return min(max(seconds, 0), MAX_PAUSE_S)


if __name__ == "__main__":
    user_id = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
    now = datetime.now(UTC).isoformat()
    metric = {"user_id": user_id, "metric_type": "talked_time", "timestamp": now}
    report = send(
        os.environ.get("METRICS_URL", "http://localhost:8000"),
        [metric | {"value": value} for value in (1.5, 2.5, 3.5)],
        key=str(uuid.uuid4()),  # save it with the metrics, and delete both after the reply
        api_key=os.environ.get("METRICS_API_KEY", ""),
    )
    sys.stdout.write(f"{report['message']}, {report['duplicates']} had been stored before\n")
    for error in report["errors"]:  # fix these metrics, or drop them: a retry gives the same errors
        sys.stdout.write(f"metric {error['index']}: {error['detail']}\n")
