"""Group commit: while a transaction commits, requests that arrive wait, and go together in the next one.

A request is answered only after its own commit, so the functions stay stateless and a 2xx is durable. A process holds
WRITE_LANES connections whatever its concurrency, and nothing is left to do after the answer.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from typing import Any

from metrics_ingest.errors import ConnectionLost, Overloaded, StoreUnavailable
from metrics_ingest.logs import Tally
from metrics_ingest.settings import settings
from metrics_ingest.shutdown import shutdown_deadline
from metrics_ingest.storage.lane import Lane
from metrics_ingest.storage.operations import STORES, Commit, Operation, Outcome
from metrics_ingest.storage.seen_sessions import SeenSessions
from metrics_ingest.telemetry import telemetry

MAX_ITEMS_PER_FLUSH = 10_000  # when several requests are merged; a single one may hold more
BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.4)  # the last one repeats, so recovery is noticed within half a second
EXPIRY_CHECK_S = 0.25
PING_S = 1.0  # how long an answer of the database counts for those who ask about its health
PING_PAUSE_S = 0.05

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class PendingWrite:
    """One request's items, from their arrival until they are committed, refused or expired."""

    operation: Operation
    items: Sequence[Any]
    commit: Commit
    deadline: float  # in the event loop's time
    result: asyncio.Future[list[Outcome]]
    may_be_stored: bool = False  # a connection was lost when its transaction may have been committed

    def finish(self, result: list[Outcome] | Exception) -> None:
        """Hand the result to the request, unless it has one or does not wait any more."""
        if not self.result.done():
            if isinstance(result, Exception):
                self.result.set_exception(result)
            else:
                self.result.set_result(result)


class Writer:
    """The queue and the lanes of one process. All methods belong to one event loop."""

    def __init__(self, lanes: Sequence[Lane], queue_limit: int, timeout_s: float) -> None:
        """`queue_limit` is the number of items that may wait, `timeout_s` the longest wait of one request."""
        self._loop = asyncio.get_running_loop()
        self._lanes = lanes
        self._idle_lanes = list(lanes)
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._waiting: deque[PendingWrite] = deque()
        self._waiting_items = 0
        self._flushes: dict[asyncio.Task[None], list[PendingWrite]] = {}
        self._expiry_planned = False
        self._last_answer = -math.inf  # of the database, in the loop's time
        self._ping: asyncio.Task[None] | None = None
        self._shutdown = shutdown_deadline()
        self._telemetry = telemetry()
        self._failures = Tally(logger, "the database is unavailable, trying again")
        self._expired = Tally(logger, "requests rejected: store_unavailable")
        self._rejected = Tally(logger, "requests rejected: overloaded")

    @property
    def distributed(self) -> bool:
        """Whether the database is on Citus, as far as is known: a lane finds it out when it connects."""
        return any(lane.distributed for lane in self._lanes)

    async def write(
        self, operation: Operation, items: Sequence[Any], commit: Commit = Commit.VALID_ITEMS, timeout_s: float = 0
    ) -> list[Outcome]:
        """Do the operation with the items and commit; return the outcomes of those not simply stored, by position.

        Raise Overloaded, StoreUnavailable after at most `timeout_s` (0: WRITE_TIMEOUT_S), or StatementRefused.
        """
        if self._waiting and self._waiting_items + len(items) > self._queue_limit:
            self._rejected.add(waiting=self._waiting_items)
            raise Overloaded
        if not self._waiting and self._idle_lanes:
            # At the end of this turn of the loop, so that everything that arrives in the same turn goes together.
            self._loop.call_soon(self._start_flushes)
        result: asyncio.Future[list[Outcome]] = self._loop.create_future()
        deadline = self._loop.time() + (timeout_s or self._timeout_s)
        self._waiting.append(PendingWrite(operation, items, commit, deadline, result))
        self._waiting_items += len(items)
        if not self._expiry_planned:
            self._expiry_planned = True
            self._loop.call_later(EXPIRY_CHECK_S, self._expire_overdue)
        return await result

    async def ping(self, timeout_s: float) -> None:
        """Return if the database has answered within the last PING_S seconds, or answers now. Raise StoreUnavailable.

        One question, and its failure, is shared by all who ask within PING_S: anybody may ask, without a key.
        """
        if self._loop.time() - self._last_answer < PING_S:
            return
        if self._ping is None:
            self._ping = self._loop.create_task(self._ask_database(self._loop.time() + timeout_s))
            self._ping.add_done_callback(self._forget_ping)
        await asyncio.shield(self._ping)

    def _forget_ping(self, ping: asyncio.Task[None]) -> None:
        def forget() -> None:
            self._ping = None

        if ping.cancelled() or ping.exception() is None:
            forget()
        else:
            self._loop.call_later(PING_S, forget)

    async def _ask_database(self, deadline: float) -> None:
        """Ask the database by an idle lane until it answers. While none is idle, a commit is an answer, too."""
        asked = self._loop.time()
        while self._last_answer < asked:
            if self._idle_lanes and not self._waiting:
                lane = self._idle_lanes.pop()
                try:
                    await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, deadline)
                    self._last_answer = self._loop.time()
                    return
                except StoreUnavailable:
                    if self._loop.time() + PING_PAUSE_S > deadline:
                        raise
                finally:
                    self._idle_lanes.append(lane)
                    self._start_flushes()
            elif self._loop.time() > deadline:
                raise StoreUnavailable("no commit in time")
            await asyncio.sleep(PING_PAUSE_S)

    def _start_flushes(self) -> None:
        """Give what waits to the idle lanes. Afterwards nothing waits, or no lane is idle."""
        while self._idle_lanes and (group := self._next_group()):
            flush = self._loop.create_task(self._flush(self._idle_lanes.pop(), group))
            self._flushes[flush] = group
            flush.add_done_callback(self._flushes.pop)
        if self._telemetry:
            self._telemetry.waiting(self._waiting_items)

    def _next_group(self) -> list[PendingWrite]:
        """Take the writes at the head of the queue that can share a transaction."""
        group: list[PendingWrite] = []
        size = 0
        while self._waiting:
            write = self._waiting[0]
            if group:
                first = group[0]
                alike = write.operation is first.operation and write.commit is first.commit is Commit.VALID_ITEMS
                if not alike or size + len(write.items) > MAX_ITEMS_PER_FLUSH:
                    break
            self._waiting.popleft()
            self._waiting_items -= len(write.items)
            if not write.result.done():  # else it is expired or cancelled
                group.append(write)
                size += len(write.items)
        return group

    async def _flush(self, lane: Lane, group: list[PendingWrite]) -> None:
        """Commit a group, then let the lane take the next one."""
        try:
            await self._commit(lane, group)
        except BaseException:  # whatever it is, no request may be left waiting
            for write in group:
                write.finish(StoreUnavailable("cancelled"))
            raise
        finally:
            self._idle_lanes.append(lane)
            self._start_flushes()

    async def _commit(self, lane: Lane, group: list[PendingWrite]) -> None:
        """Try to commit the group in one transaction until that is known to have happened or its time is up."""
        for attempt in count():
            group = [write for write in group if not write.result.done()]
            if not group:
                return
            first, last = group[0], group[-1]
            items = first.items if first is last else [item for write in group for item in write.items]
            started = time.perf_counter()
            try:
                # Nobody waits longer than the last one's deadline, so the lane must not either.
                outcomes = await lane.execute(first.operation, items, first.commit, last.deadline)
            except StoreUnavailable as error:
                await self._back_off(group, error, attempt)
            except Exception as error:  # noqa: BLE001  # a refusal or a defect is the answer to the one request at fault
                if first is last:
                    first.finish(error)
                else:  # halving finds one request at fault of a thousand with twenty statements; the others succeed
                    await self._commit(lane, group[: len(group) // 2])
                    await self._commit(lane, group[len(group) // 2 :])
                return
            else:
                self._last_answer = self._loop.time()
                _distribute(outcomes, group)
                if self._telemetry and first.operation in STORES:
                    self._telemetry.committed(len(items), time.perf_counter() - started)
                if attempt > 1:
                    logger.info("the database is available again")
                return

    async def _back_off(self, group: list[PendingWrite], error: StoreUnavailable, attempt: int) -> None:
        """Log a failed attempt (the first is 0), wait before the next, and expire what has no time left for it."""
        if isinstance(error, ConnectionLost):
            for write in group:
                write.may_be_stored = True
            for lane in self._idle_lanes:  # a restart, a failover or the network has most likely ended theirs, too
                lane.close()
        if self._telemetry:
            self._telemetry.connection_failed()
        if attempt:  # the first failure is often a connection that was closed while it was idle
            self._failures.add(reason=error.reason)
        await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1))
        self._expire(group)

    def _expire(self, writes: Iterable[PendingWrite]) -> None:
        """Answer the requests whose time is up, or all of them when the process's is."""
        now = self._loop.time()
        for write in writes:
            if min(write.deadline, self._shutdown.until) <= now and not write.result.done():
                self._expired.add(waiting=self._waiting_items)
                write.finish(StoreUnavailable("no commit in time"))

    def _expire_overdue(self) -> None:
        """Expire what has waited too long. One timer for all requests is far cheaper than one for each."""
        self._expire(chain(*self._flushes.values(), self._waiting))
        while self._waiting and self._waiting[0].result.done():  # make room: while all lanes hang, nothing takes them
            self._waiting_items -= len(self._waiting.popleft().items)
        if self._telemetry:
            self._telemetry.waiting(self._waiting_items)
        self._expiry_planned = bool(self._flushes or self._waiting)
        if self._expiry_planned:
            self._loop.call_later(EXPIRY_CHECK_S, self._expire_overdue)


def _distribute(outcomes: list[Outcome], group: list[PendingWrite]) -> None:
    """Give each request the outcomes of its own items, with positions relative to them."""
    if len(group) == 1 and not group[0].may_be_stored:
        group[0].finish(outcomes)
        return
    start = 0
    left = deque(outcomes)
    for write in group:
        end = start + len(write.items)
        own = []
        while left and left[0].position < end:
            outcome = left.popleft()
            # After a lost connection a duplicate may be what the lost attempt stored: it counts as stored, once.
            if not (write.may_be_stored and outcome.kind == "duplicate" and not outcome.facts.get("repeat")):
                own.append(outcome._replace(position=outcome.position - start))
        start = end
        write.finish(own)


@cache
def writer() -> Writer:
    """This process's writer, made by its first request, because functions-framework imports before it forks."""
    return make_writer(settings().write_lanes)


def make_writer(connections: int) -> Writer:
    """Return a writer with connections of its own, for the running loop."""
    chosen = settings()
    seen = SeenSessions()
    lanes = [Lane(chosen.database, seen) for _ in range(connections)]
    return Writer(lanes, chosen.write_queue, chosen.write_timeout_s)
