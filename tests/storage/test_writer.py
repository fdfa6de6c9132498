"""The writer's own mechanisms, one at a time, on a lane that does what the test says."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from metrics_ingest import shutdown
from metrics_ingest.errors import ConnectionLost, Overloaded, StatementRefused, StoreUnavailable
from metrics_ingest.storage import writer
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.writer import Writer

Script = Callable[[Sequence[Any]], list[Outcome]]


class FakeLane:
    """Does as the script says: return outcomes or raise, by the items; it keeps what it was given."""

    def __init__(self, script: Script = lambda items: []) -> None:
        self.script = script
        self.calls: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def execute(self, operation: Operation, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        self.calls.append(list(items))
        await self.gate.wait()
        await asyncio.sleep(0)
        return self.script(items)


@pytest.fixture(autouse=True)
def own_process() -> None:
    shutdown.shutdown_deadline.cache_clear()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def make(*lanes: Any, queue: int = 100, timeout_s: float = 5) -> Writer:
    return Writer(lanes, queue, timeout_s)


def duplicates(items: Sequence[Any]) -> list[Outcome]:
    return [Outcome(position, "duplicate", {"repeat": False}) for position in range(len(items))]


def test_own_lost_copy_counts_as_stored_and_others_as_duplicates() -> None:
    async def test() -> None:
        answers = iter([ConnectionLost("cut"), None, None])

        def script(items: Sequence[Any]) -> list[Outcome]:
            error = next(answers)
            if error:
                raise error
            return duplicates(items)

        subject = make(FakeLane(script))
        assert await subject.write(Operation.STORE_METRICS, ["a"]) == []
        assert [outcome.kind for outcome in await subject.write(Operation.STORE_METRICS, ["b"])] == ["duplicate"]

    run(test)


def test_failure_before_anything_was_sent_makes_no_duplicate_look_stored() -> None:
    async def test() -> None:
        answers = iter([StoreUnavailable("refused"), StoreUnavailable("refused"), None])

        def script(items: Sequence[Any]) -> list[Outcome]:
            error = next(answers)
            if error:
                raise error
            return duplicates(items)

        assert len(await make(FakeLane(script)).write(Operation.STORE_METRICS, ["a"])) == 1

    run(test)


@pytest.mark.parametrize("error", [StatementRefused("23514"), KeyError("a defect")])
def test_one_poisoned_request_of_a_thousand_fails_alone_and_soon(error: Exception) -> None:
    async def test() -> None:
        def script(items: Sequence[Any]) -> list[Outcome]:
            if "poison" in items:
                raise error
            return []

        lane = FakeLane(script)
        subject = make(lane, queue=10_000)
        items = ["poison" if number == 617 else number for number in range(1000)]
        results = await asyncio.gather(
            *(subject.write(Operation.STORE_METRICS, [item]) for item in items), return_exceptions=True
        )
        assert [number for number, result in enumerate(results) if result != []] == [617]
        assert results[617] is error
        assert len(lane.calls) < 25

    run(test)


def test_hung_lane_holds_up_nothing_but_itself() -> None:
    """Those in it are answered in time, those that come meanwhile take the other."""

    async def test() -> None:
        hung, working = FakeLane(), FakeLane()
        hung.gate.clear()
        subject = make(working, hung, timeout_s=0.5)  # the last is taken first
        first = asyncio.ensure_future(subject.write(Operation.STORE_METRICS, ["a"]))
        await asyncio.sleep(0.1)
        for item in range(20):
            assert await asyncio.wait_for(subject.write(Operation.STORE_METRICS, [item]), 0.4) == []
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(first, 5)
        hung.gate.set()

    run(test)


def test_expired_requests_make_room() -> None:
    """While every lane hangs, what nobody waits for any more must not fill the queue."""

    async def test() -> None:
        lane = FakeLane()
        lane.gate.clear()
        subject = make(lane, queue=10, timeout_s=0.4)
        waiting = [asyncio.ensure_future(subject.write(Operation.STORE_METRICS, [0]))]
        await asyncio.sleep(0.01)
        waiting += [asyncio.ensure_future(subject.write(Operation.STORE_METRICS, list(range(5)))) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await subject.write(Operation.STORE_METRICS, [1])
        assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {StoreUnavailable}
        later = asyncio.ensure_future(subject.write(Operation.STORE_METRICS, [1]))
        await asyncio.sleep(0.01)
        lane.gate.set()
        assert await later == []
        assert lane.calls == [[0], [1]]

    run(test)


def test_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def test() -> None:
        assert await make(FakeLane(), queue=10).write(Operation.STORE_METRICS, list(range(11))) == []

    run(test)


def test_strict_requests_and_other_calls_travel_alone() -> None:
    async def test() -> None:
        lane = FakeLane()
        lane.gate.clear()
        subject = make(lane)
        plans = [(Operation.STORE_METRICS, Commit.VALID_ITEMS)] * 3 + [
            (Operation.STORE_METRICS, Commit.ALL_OR_NOTHING),
            (Operation.STORE_METRICS, Commit.VALID_ITEMS),
        ]
        plans += [(Operation.STORE_METRICS, Commit.VALID_ITEMS), (Operation.REGISTER_USERS, Commit.VALID_ITEMS)]
        first = asyncio.ensure_future(subject.write(Operation.PING, ()))
        await asyncio.sleep(0.01)
        rest = [
            asyncio.ensure_future(subject.write(call, [number], commit)) for number, (call, commit) in enumerate(plans)
        ]
        await asyncio.sleep(0.01)
        lane.gate.set()
        assert await asyncio.gather(first, *rest) == [[]] * 8
        assert lane.calls == [[], [0, 1, 2], [3], [4, 5], [6]]

    run(test)


def test_everyone_gets_the_outcomes_of_their_own_positions() -> None:
    async def test() -> None:
        lane = FakeLane(lambda items: [Outcome(at, "duplicate", {}) for at, item in enumerate(items) if item == "x"])
        subject = make(lane)
        results = await asyncio.gather(
            *(subject.write(Operation.STORE_METRICS, items) for items in (["a", "x"], ["b"], ["x", "c", "x"]))
        )
        assert [[outcome.position for outcome in result] for result in results] == [[1], [], [0, 2]]
        assert len(lane.calls) == 1

    run(test)


def test_cancelled_request_holds_nothing() -> None:
    async def test() -> None:
        lane = FakeLane()
        lane.gate.clear()
        subject = make(lane)
        tasks = [asyncio.ensure_future(subject.write(Operation.STORE_METRICS, [number])) for number in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks[1:4]:
            task.cancel()
        lane.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result == [] for result in results] == [True, False, False, False, True]
        assert await asyncio.wait_for(subject.write(Operation.STORE_METRICS, ["next"]), 1) == []

    run(test)


def test_no_wake_up_is_lost_whatever_the_order() -> None:
    """A thousand requests that come at any moment of a flush: none waits for another to come along."""

    async def test() -> None:
        subject = make(FakeLane(), FakeLane(), queue=10_000)

        async def client(number: int) -> None:
            for turn in range(20):
                for _ in range((number * turn) % 7):
                    await asyncio.sleep(0)
                assert await subject.write(Operation.STORE_METRICS, [number]) == []

        await asyncio.wait_for(asyncio.gather(*map(client, range(50))), 10)

    run(test)


def test_end_of_the_process_answers_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        lane = FakeLane()
        lane.gate.clear()
        subject = make(lane, timeout_s=60)
        waiting = [asyncio.ensure_future(subject.write(Operation.STORE_METRICS, [number])) for number in range(3)]
        await asyncio.sleep(0.05)
        shutdown.shutdown_deadline().until = asyncio.get_running_loop().time()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2 * writer.EXPIRY_CHECK_S)
        assert {type(result) for result in results} == {StoreUnavailable}

    run(test)


class Asked(FakeLane):
    """Counts the questions about its health."""

    async def execute(self, operation: Operation, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        return await super().execute(operation, items if operation is not Operation.PING else ["ping"], commit, until)


def test_health_is_asked_once_by_all_who_ask_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PING_S", 0.3)

    async def test() -> None:
        lane = Asked()
        subject = make(lane)
        await asyncio.gather(*(subject.ping(2) for _ in range(100)))
        await subject.ping(2)
        assert lane.calls == [["ping"]]
        await asyncio.sleep(0.35)
        await subject.ping(2)
        assert lane.calls == [["ping"]] * 2

    run(test)


def test_commit_is_an_answer_about_the_health() -> None:
    async def test() -> None:
        lane = Asked()
        subject = make(lane)
        await subject.write(Operation.STORE_METRICS, ["a"])
        await subject.ping(2)
        assert lane.calls == [["a"]]

    run(test)


@pytest.mark.parametrize("health_first", [False, True])
def test_health_takes_no_lane_from_metrics_and_waits_for_their_commit(health_first: bool) -> None:
    async def test() -> None:
        lane = Asked()
        lane.gate.clear()
        subject = make(lane)
        pings = [asyncio.ensure_future(subject.ping(2))] if health_first else []
        writes = [asyncio.ensure_future(subject.write(Operation.STORE_METRICS, [n])) for n in range(3)]
        pings += [asyncio.ensure_future(subject.ping(2)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert not any(ping.done() for ping in pings)
        lane.gate.set()
        await asyncio.gather(*writes, *pings)
        assert ["ping"] not in lane.calls

    run(test)


def test_failed_health_is_shared_too_and_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PING_S", 0.3)

    async def test() -> None:
        def refuse(items: Sequence[Any]) -> list[Outcome]:
            raise StoreUnavailable("refused")

        lane = Asked(refuse)
        subject = make(lane)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await subject.ping(0.04)
        assert len(lane.calls) == 1
        await asyncio.sleep(0.4)
        lane.script = lambda items: []
        await subject.ping(1)

    run(test)
