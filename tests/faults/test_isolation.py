"""A metric that the database refuses fails no other client's request."""

from collections.abc import Callable

from faults.load import locked, post_all
from support.metrics import metric, register
from support.processes import Server, query

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.value = 4711 THEN RAISE EXCEPTION 'refused: % of %', NEW.value, NEW.metric_id; END IF;
    RETURN NEW;
END $$
"""


def test_poison_in_a_merged_flush_fails_only_its_own_request(database_url: str, serve: Callable[..., Server]) -> None:
    query(database_url, REFUSE)
    query(database_url, "CREATE TRIGGER refuse BEFORE INSERT ON metrics FOR EACH ROW EXECUTE FUNCTION refuse()")
    server = serve("ingest", database_url)
    user_id = register(database_url)
    bodies = [metric(user_id, value=4711 if number == 57 else number) for number in range(100)]
    with locked(database_url) as unlock:  # so that all but the first wait and are merged
        answers = post_all(server.port, "/ingest/", bodies, unlock)
    statuses = [answer.status for answer in answers]
    assert statuses == [500 if number == 57 else 200 for number in range(100)]
    assert query(database_url, "SELECT count(*) FROM metrics WHERE user_id = :u", u=user_id) == [[99]]
    assert b"correlation id is " in answers[57].body
    correlation_id = answers[57].body.split(b"correlation id is ")[1][:36].decode()
    (line,) = (line for line in server.log.splitlines() if correlation_id in line)
    assert '"severity":"ERROR"' in line
    assert "P0001" in line
    assert "4711" not in server.log
    assert bodies[57]["metric_id"] not in server.log
