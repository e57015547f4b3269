"""Watching a run: looks at it again and again, at no cost to its history."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.effects import Progress
from perdure.errors import NotReachable, PerdureError, RunFailed
from perdure.messages import Message
from perdure.wire import Failure, NodeStatus, RunStatus, Status, TurnReply

from .below import Below
from .diff import Pending, Seen
from .events import Event, Finished, TurnFinished

if TYPE_CHECKING:
    from .run import Run

_QUICK: Final = timedelta(milliseconds=100)
_SLOW: Final = timedelta(seconds=1)
_AT_ONCE: Final = 8
"""Runs of a tree that are looked at in full haste; of more, each is looked at less often."""
_ANSWER_WITHIN: Final = 2.0
"""Seconds for a worker to answer a look; the next look asks again."""
_PATIENT: Final = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})


@dataclass
class Pace:
    """How often the runs of a tree are looked at: seldom while all of them wait for people."""

    statuses: dict[str, Status | None] = field(default_factory=dict[str, Status | None])
    """Of those that are watched, by run id."""
    deaf: bool = False
    """No worker answered the last question: what is over is not asked about any more."""
    door: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    """Of so many runs at once is asked where they are: a worker may have to replay each of them."""

    async def wait(self, run_id: str, status: Status | None) -> None:
        """Until the next look at that run."""
        self.statuses[run_id] = status
        patient = all(one in _PATIENT for one in self.statuses.values())
        await asyncio.sleep((_SLOW if patient else self.quick).total_seconds())

    @property
    def quick(self) -> timedelta:
        """Between two looks at a run that works."""
        return _QUICK * max(1.0, len(self.statuses) / _AT_ONCE)


async def watch(run: "Run", *, after_message: int = 0, pace: Pace | None = None) -> AsyncIterator[Event]:
    """Every event of the run from message `after_message` on, until it is over.

    A look costs one `describe`, and a query when the run's history has grown since. If no worker
    answers the query, watching goes on with what the server knows.
    """
    pace = pace or Pace()
    looks = _Looks(run, after_message, pace)
    try:
        while True:
            events, status = await looks.next()
            for event in events:
                yield event
            if status != WorkflowExecutionStatus.RUNNING:
                finished = await _finished(run, status)
                for event in looks.seen.of_end(finished.result):
                    yield event
                yield finished
                return
            await pace.wait(run.id, looks.seen.status)
    finally:
        pace.statuses.pop(run.id, None)


async def watch_turn(
    run: "Run", reply: "asyncio.Future[TurnReply]", *, after_message: int
) -> AsyncIterator[Event]:
    """Every event of a session from message `after_message` on, until the reply is there.

    Raises:
        PerdureError: whatever the reply raises.

    """
    looks = _Looks(run, after_message, Pace())
    while True:
        over = reply.done()
        events, _ = await looks.next()
        for event in events:
            yield event
        if over:
            yield TurnFinished(reply=reply.result())
            return
        await asyncio.wait({reply}, timeout=looks.pause.total_seconds())


class _Looks:
    """Looks at a run, and what was new at each."""

    def __init__(self, run: "Run", after_message: int, pace: Pace) -> None:
        self.seen = Seen(messages=after_message)
        self._run = run
        self._pace = pace
        self._below = Below(run)
        self._looked: tuple[str, int] | None = None

    @property
    def pause(self) -> timedelta:
        """How long until the next look is worth it."""
        return _SLOW if self.seen.status in _PATIENT else _QUICK

    async def next(self) -> tuple[list[Event], WorkflowExecutionStatus | None]:
        """What is new, and whether the workflow is still there."""
        seen, news = self.seen, list[Event]()
        described = await self._run.described()
        closed = described.status != WorkflowExecutionStatus.RUNNING
        at = (str(described.run_id), described.history_length)
        if at != self._looked and not (closed and self._pace.deaf):
            told = await _ask(self._run, seen.messages, self._below, described, self._pace)
            if told is not None:
                self._looked = at
                news += told.news(seen)
        # After the messages: a step's text must not be told before the results of the step before it.
        news += seen.of_flights(await _flights(self._run.client, described))
        return news, described.status


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a worker told of a run."""

    status: RunStatus
    messages: list[Message]
    nodes: list[NodeStatus]

    def news(self, seen: Seen) -> list[Event]:
        if self.status.kind not in ("swarm", "graph"):
            seen.knows(self.nodes)
        return [*seen.of_messages(self.messages), *seen.of_status(self.status, self.nodes)]


async def _ask(
    run: "Run", known: int, below: Below, described: WorkflowExecutionDescription, pace: Pace
) -> _Told | None:
    """Status and new messages; None when no worker answers, or none has begun with the run yet."""
    try:
        # A question that gets lost must not keep what the server itself knows from those who watch.
        async with pace.door, asyncio.timeout(_ANSWER_WITHIN):
            status = await run.status()
            messages = await run.transcript(start=known) if status.messages > known else []
            nodes = await below.nodes(status, messages, described)
    except TimeoutError:
        return None
    except PerdureError as error:
        pace.deaf = isinstance(error, NotReachable)
        return None
    pace.deaf = False
    return _Told(status=status, messages=messages, nodes=nodes)


async def _flights(client: Client, described: WorkflowExecutionDescription) -> list[Pending]:
    pending: list[PendingActivityInfo] = list(described.raw_description.pending_activities)
    return [await _pending(client, info) for info in pending]


async def _pending(client: Client, info: PendingActivityInfo) -> Pending:
    error = info.last_failure.message if info.attempt > 1 and info.HasField("last_failure") else None
    return Pending(progress=await _progress(client, info), attempt=info.attempt, error=error)


async def _progress(client: Client, info: PendingActivityInfo) -> Progress | None:
    if not info.heartbeat_details.payloads:
        return None
    try:
        details: list[Any] = await client.data_converter.decode(list(info.heartbeat_details.payloads))
        return Progress.model_validate(details[0])
    except Exception:
        return None  # a remote tool heartbeats as it likes, in any encoding


async def _finished(run: "Run", status: WorkflowExecutionStatus | None) -> Finished:
    try:
        result = await run.result()
    except RunFailed as error:
        failure = Failure(kind=error.kind, message=str(error))
        return Finished(status="failed", result=error.result, error=failure)
    cancelled = status == WorkflowExecutionStatus.CANCELED
    return Finished(status="cancelled" if cancelled else "completed", result=result)
