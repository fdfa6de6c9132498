"""Which sessions need not be looked for: those that this process has seen stored.

A hint to the database, never a promise: it makes a session that is missing all the same, erased since, and what it is
not told of it looks for. So nothing is lost with a process, and nothing is wrong when the hint is.
"""

from collections.abc import Sequence

from metrics_ingest.model.metric import Row

MOST = 50_000  # some six megabytes


class SeenSessions:
    """A process's sessions, by user and session id."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def unseen(self, rows: Sequence[Row]) -> list[bool]:
        """For each metric whether its session may be new; empty when none may."""
        seen = self._seen
        marks = [row[0] + row[3] not in seen for row in rows]
        return marks if True in marks else []

    def remember(self, rows: Sequence[Row]) -> None:
        """These metrics are stored, so their sessions are."""
        if len(self._seen) > MOST:
            self._seen.clear()
        self._seen.update([row[0] + row[3] for row in rows])
