"""The list of the API's endpoints, and the reply of one of them as JSON or CSV."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from metrics_ingest.dashboard import overview, rejected, series, sessions, types, users
from metrics_ingest.dashboard.parameters import Parameters
from metrics_ingest.dashboard.reader import Row, Session, reader
from metrics_ingest.dashboard.tables import to_csv
from metrics_ingest.http.replies import Reply

CSV = b"text/csv; charset=utf-8; header=present"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`plan` reads the parameters and returns the query; `rows` takes the rows for CSV out of its reply.

    The replies of `shared` ones may be those of another reader's request a moment before.
    """

    parameters: tuple[str, ...]
    plan: Callable[[Parameters], Callable[[Session], Row]]
    rows: Callable[[Row], list[Row]]
    shared: bool = False


def _list(name: str) -> Callable[[Row], list[Row]]:
    return lambda reply: list(reply[name])


ENDPOINTS = {
    "types": Endpoint(types.PARAMETERS, types.plan, _list("types")),
    "overview": Endpoint(overview.PARAMETERS, overview.plan, _list("types"), shared=True),
    "freshness": Endpoint((), lambda _: overview.freshness, lambda reply: [reply]),
    "series": Endpoint(series.PARAMETERS, series.plan, series.series_rows, shared=True),
    "activity": Endpoint(series.ACTIVITY_PARAMETERS, series.activity_plan, series.activity_rows, shared=True),
    "users": Endpoint(users.PARAMETERS, users.plan, _list("users")),
    "sessions": Endpoint(sessions.PARAMETERS, sessions.plan, _list("sessions")),
    "session": Endpoint(sessions.SESSION_PARAMETERS, sessions.session_plan, _list("metrics")),
    "rejected": Endpoint(rejected.PARAMETERS, rejected.plan, _list("rejected")),
}

KEEP_S = 1.5  # how much older than the database the figures that are not from the summaries may be


async def answer(name: str, query_string: bytes) -> Response:
    """The reply of the endpoint `name`. Raise IngestError for what is wrong with the request or the database."""
    endpoint = ENDPOINTS[name]
    parameters = Parameters(query_string, (*endpoint.parameters, "format"))
    as_csv = parameters.choice("format", ("json", "csv"), "json") == "csv"
    query = endpoint.plan(parameters)

    def compute(session: Session) -> bytes:
        reply = query(session)
        return to_csv(endpoint.rows(reply)) if as_csv else to_json(reply, inf_nan_mode="null")

    def read(session: Session) -> bytes:
        """Encode in the reading thread, too: 10,000 rows would hold up the event loop."""
        if not endpoint.shared:
            return compute(session)
        # Pages refresh every five seconds, for ranges that end on the hour, so pages with one view send equal requests.
        # Another state is another reply: whoever refreshes the summaries sees the new figures at once.
        key = (name, query_string, overview.state_of(session))
        return session.remember(key, lambda: compute(session), keep_s=KEEP_S)

    body = await reader().read(read)
    fields: list[tuple[bytes, bytes]] = [(b"cache-control", b"no-store")]
    if as_csv:
        fields.append((b"content-disposition", b'attachment; filename="%s.csv"' % name.encode()))
    return Reply(200, body, fields, CSV if as_csv else b"application/json")


def health(session: Session) -> Any:
    """The query of the health check."""
    return session.row("SELECT 1 AS ok")
