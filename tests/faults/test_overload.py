"""More load than the database can take: the surplus is refused at once, and accepted requests are not slowed."""

import time
from collections.abc import Callable

import pytest

from faults.load import Load, post_all
from support.memory import resident_bytes
from support.metrics import metric, register
from support.processes import Server, query

pytestmark = pytest.mark.slow

SLOW = """
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT ON metrics FOR EACH STATEMENT EXECUTE FUNCTION be_slow()
"""


def test_surplus_is_refused_at_once(database_url: str, serve: Callable[..., Server]) -> None:
    for statement in SLOW.strip().split(";\nCREATE TRIGGER"):
        query(database_url, statement if "FUNCTION be_slow() RETURNS" in statement else f"CREATE TRIGGER{statement}")
    server = serve("ingest", database_url, WRITE_QUEUE="20")
    with Load(server.port, database_url, clients=150) as load:
        time.sleep(1)
        early = resident_bytes(server)
        time.sleep(3)
        late = resident_bytes(server)
        query(database_url, "DROP TRIGGER slow ON metrics")
    load.check_all_stored()
    assert {code for code, _ in load.rejections} == {"overloaded"}
    assert len(load.rejections) > 100
    seconds = sorted(seconds for _, seconds in load.rejections)
    assert seconds[len(seconds) * 9 // 10] < 0.5
    assert load.slowest < 2.5  # at most two flushes of 0.3 s before its own
    assert late - early < 10_000_000

    user_id = register(database_url)
    answers = post_all(server.port, "/ingest/", [metric(user_id) for _ in range(20)])
    assert [answer.status for answer in answers] == [200] * 20
    assert max(answer.seconds for answer in answers) < 1
