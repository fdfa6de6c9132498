"""Which sessions this process has seen stored: a hint that saves the database work."""

from collections.abc import Sequence

from metrics_ingest.model.metric import MetricRow

MAX_SESSIONS = 50_000  # about eight megabytes
NEVER = 2**63  # later than any time


class SeenSessions:
    """A bounded map of sessions to the earliest time of a metric that this process has seen stored in each.

    It is a hint which sessions the database need not insert, and whose start_time need not become earlier. The database
    creates a session that is missing all the same (erased since, say), and looks for one not hinted at. Of a session
    that was erased and created again, the start_time may be late until the process forgets it.
    """

    def __init__(self) -> None:
        self._earliest: dict[bytes, int] = {}

    def unseen(self, rows: Sequence[MetricRow]) -> list[bool]:
        """For each metric whether its session may be new, or may begin with it; empty if no session may."""
        earliest = self._earliest.get
        marks = [at < earliest(user_id + session_id, NEVER) for user_id, at, _, session_id, _, _ in rows]
        return marks if True in marks else []

    def remember(self, rows: Sequence[MetricRow]) -> None:
        """Add the sessions of metrics that are stored."""
        if len(self._earliest) > MAX_SESSIONS:
            self._earliest.clear()
        for user_id, at, _, session_id, _, _ in rows:
            session = user_id + session_id
            if at < self._earliest.get(session, NEVER):
                self._earliest[session] = at
