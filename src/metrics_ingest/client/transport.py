"""One request to ingest_batch, and what came back."""

import logging
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import requests

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0  # more than the function's WRITE_TIMEOUT_S
RETRY_AFTER_LIMIT_S = 3600.0  # a longer one is not believed
RETRIED_4XX = frozenset((408, 425, 429))


class Answer(NamedTuple):
    """What came back: the status (0: no answer), the JSON object of the body, and Retry-After in seconds (0: none)."""

    status: int
    report: dict[str, Any]
    retry_after_s: float = 0

    def accounts_for(self, count: int) -> bool:
        """Whether the function answered for so many metrics. A proxy's own page, even with status 200, does not."""
        return self.status in (200, 207, 422) and self.report.get("received") == count

    @property
    def lists_all_errors(self) -> bool:
        """Whether each rejected metric has its entry: a function that is short of memory lists none of them."""
        return bool(len({error["index"] for error in self.report["errors"]}) == self.report["rejected"])

    @property
    def is_final(self) -> bool:
        """Whether the request as a whole is wrong, so that sending it again is of no use."""
        return 400 <= self.status < 500 and self.status not in RETRIED_4XX


def post(session: requests.Session, url: str, headers: dict[str, str], lines: list[str], within_s: float) -> Answer:
    """Send the lines as NDJSON. Connection failures, timeouts and answers that are cut short give status 0."""
    timeout_s = (min(within_s, CONNECT_TIMEOUT_S), min(within_s, ANSWER_TIMEOUT_S))
    try:
        answer = session.post(url, data="\n".join(lines).encode(), headers=headers, timeout=timeout_s)
    except requests.RequestException as error:
        logger.info("no answer from %s: %s", url, error)
        return Answer(0, {})
    try:
        report = answer.json()
    except ValueError:
        report = None
    retry_after_s = seconds(answer.headers.get("Retry-After", ""))
    return Answer(answer.status_code, report if isinstance(report, dict) else {}, retry_after_s)


def seconds(retry_after: str) -> float:
    """Read Retry-After, seconds or an HTTP date (RFC 9110, 10.2.3); 0 when it says nothing usable."""
    try:
        value = float(retry_after)
    except ValueError:
        try:
            value = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0
    return min(value, RETRY_AFTER_LIMIT_S) if value > 0 else 0
