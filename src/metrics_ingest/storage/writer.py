"""Group commit: while one transaction commits, what arrives meanwhile waits and goes together in the next.

A request is answered only after its own commit, so the functions stay stateless and a 2xx is durable. A process holds
WRITE_LANES connections whatever its concurrency, and nothing is left to do after the answer.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from typing import Any

from metrics_ingest.errors import ConnectionLost, Overloaded, StoreUnavailable
from metrics_ingest.logs import Tally
from metrics_ingest.settings import settings
from metrics_ingest.shutdown import shutdown_deadline
from metrics_ingest.storage.connection import Connection
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.seen_sessions import SeenSessions

MOST_PER_CALL = 10_000  # metrics that are merged into one transaction; a single request may hold more
BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.4)  # the last repeats: recovery is noticed within half a second
SWEEP_S = 0.25

logger = logging.getLogger(__name__)


class Job:
    """One request's items on their way to the database."""

    __slots__ = ("commit", "deadline", "future", "items", "maybe_stored", "operation")

    def __init__(
        self,
        operation: Operation,
        items: Sequence[Any],
        commit: Commit,
        deadline: float,
        future: asyncio.Future[list[Outcome]],
    ) -> None:
        self.operation = operation
        self.items = items
        self.commit = commit
        self.deadline = deadline
        self.future = future
        self.maybe_stored = False  # a connection was lost while it was being stored


class Writer:
    """The queue and the lanes of one process; all methods belong to one event loop."""

    def __init__(self, stores: Sequence[Connection], queue_limit: int, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = list(stores)
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._waiting: deque[Job] = deque()
        self._waiting_items = 0
        self._in_flight: set[Job] = set()
        self._flushes: set[asyncio.Task[None]] = set()
        self._dispatch_planned = False
        self._sweep_planned = False
        self._shutdown = shutdown_deadline()
        self._failures = Tally(logger, "the database is unavailable, trying again")
        self._given_up = Tally(logger, "requests rejected: store_unavailable")
        self._rejected = Tally(logger, "requests rejected: overloaded")

    async def write(
        self, operation: Operation, items: Sequence[Any], commit: Commit = Commit.ALWAYS, timeout_s: float | None = None
    ) -> list[Outcome]:
        """Store the items and return the outcomes worth telling, positions relative to `items`, after the commit.

        Raise Overloaded at once, StoreUnavailable after `timeout_s` (default: WRITE_TIMEOUT_S) at the latest,
        StatementRefused for a defect.
        """
        if self._waiting and self._waiting_items + len(items) > self._queue_limit:
            self._rejected.add(waiting=self._waiting_items)
            raise Overloaded
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._waiting.append(Job(operation, items, commit, self._loop.time() + (timeout_s or self._timeout_s), future))
        self._waiting_items += len(items)
        if not self._dispatch_planned and self._idle:
            # Not now but when this turn of the loop ends: what arrived in the same turn goes along.
            self._dispatch_planned = True
            self._loop.call_soon(self._dispatch)
        if not self._sweep_planned:
            self._sweep_planned = True
            self._loop.call_later(SWEEP_S, self._sweep)
        return await future

    def _dispatch(self) -> None:
        self._dispatch_planned = False
        while self._idle and (jobs := self._take()):
            flush = self._loop.create_task(self._flush(self._idle.pop(), jobs))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)

    def _take(self) -> list[Job]:
        """The jobs at the head of the queue that can share a transaction."""
        jobs: list[Job] = []
        size = 0
        while self._waiting:
            job = self._waiting[0]
            alone = job.commit is not Commit.ALWAYS
            if jobs and (alone or job.operation is not jobs[0].operation or size + len(job.items) > MOST_PER_CALL):
                break
            self._waiting.popleft()
            self._waiting_items -= len(job.items)
            if job.future.done():  # its time was up
                continue
            jobs.append(job)
            size += len(job.items)
            if alone:
                break
        return jobs

    async def _flush(self, store: Connection, jobs: list[Job]) -> None:
        self._in_flight.update(jobs)
        try:
            await self._store(store, jobs)
        except BaseException:  # nothing may leave a request waiting
            for job in jobs:
                _settle(job, StoreUnavailable("cancelled"))
            raise
        finally:
            self._in_flight.difference_update(jobs)
            self._idle.append(store)
            self._dispatch()

    async def _store(self, store: Connection, jobs: list[Job]) -> None:
        """Store the jobs in one transaction, again and again until it is known to be committed or their time is up."""
        for attempt in count():
            jobs = [job for job in jobs if not job.future.done()]
            if not jobs:
                return
            items = jobs[0].items if len(jobs) == 1 else [item for job in jobs for item in job.items]
            try:
                # The latest deadline is the last job's. Later than that nobody waits for, so the lane must not either.
                _deliver(jobs, await store.execute(jobs[0].operation, items, jobs[0].commit, jobs[-1].deadline))
            except StoreUnavailable as error:
                if isinstance(error, ConnectionLost):
                    for job in jobs:
                        job.maybe_stored = True
                if attempt:  # a first failure is often just a connection that had died of old age
                    self._failures.add(reason=error.reason)
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1))
                self._give_up(jobs)
            except Exception as error:  # noqa: BLE001  # a refusal, or a defect: told to its one request
                if len(jobs) == 1:
                    _settle(jobs[0], error)
                    return
                # One request's data must not fail another's. Halves find the one in a thousand with twenty statements.
                await self._store(store, jobs[: len(jobs) // 2])
                await self._store(store, jobs[len(jobs) // 2 :])
                return
            else:
                if attempt > 1:
                    logger.info("the database is available again")
                return

    def _give_up(self, jobs: Iterable[Job]) -> None:
        """Answer those whose time is up: all of them, when the process is to end."""
        now = self._loop.time()
        for job in jobs:
            if min(job.deadline, self._shutdown.until) <= now and not job.future.done():
                self._given_up.add(waiting=self._waiting_items)
                _settle(job, StoreUnavailable("no commit in time"))

    def _sweep(self) -> None:
        """Give up what has waited too long. One timer for all is far cheaper than one for each request."""
        self._give_up((*self._in_flight, *self._waiting))
        while self._waiting and self._waiting[0].future.done():  # nothing takes them while the lanes hang
            self._waiting_items -= len(self._waiting.popleft().items)
        self._sweep_planned = bool(self._in_flight or self._waiting)
        if self._sweep_planned:
            self._loop.call_later(SWEEP_S, self._sweep)


def _deliver(jobs: list[Job], outcomes: list[Outcome]) -> None:
    """Give each job its own outcomes, its own positions."""
    if not outcomes:
        for job in jobs:
            _settle(job, [])
        return
    start = at = 0
    for job in jobs:
        end = start + len(job.items)
        own = []
        while at < len(outcomes) and outcomes[at].position < end:
            outcome = outcomes[at]
            at += 1
            # After a lost connection the first copy may be what the lost attempt had stored: it counts as stored, once.
            if not (job.maybe_stored and outcome.kind == "duplicate" and not outcome.facts.get("repeat")):
                own.append(outcome._replace(position=outcome.position - start))
        start = end
        _settle(job, own)


def _settle(job: Job, result: list[Outcome] | Exception) -> None:
    if job.future.done():
        return
    if isinstance(result, Exception):
        job.future.set_exception(result)
    else:
        job.future.set_result(result)


@cache
def writer() -> Writer:
    """This process's writer, made by its first request: functions-framework imports before it forks."""
    chosen = settings()
    seen = SeenSessions()
    stores = [Connection(chosen.database, seen) for _ in range(chosen.write_lanes)]
    return Writer(stores, chosen.write_queue, chosen.write_timeout_s)
