"""Watching a run: looks at it again and again, at no cost to its history."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

from temporalio.client import WorkflowExecutionStatus

from perdure.errors import NotReachable, PerdureError, RunFailed, ServerBusy
from perdure.messages import Message
from perdure.wire.events import Event, Finished, TurnFinished
from perdure.wire.results import Failure, NodeStatus, RunStatus, Status, TurnReply

from .changes import Seen
from .children import Below
from .poll import QUICK, Glance, Glances
from .watched import WatchedRun

_SLOW: Final = timedelta(seconds=1)
_AT_ONCE: Final = 8
"""Runs of a tree that are looked at in full haste; of more, each is looked at less often."""
_ANSWER_WITHIN: Final = 2.0
"""Seconds for a worker to answer a look; the next look asks again."""
_LAST_ANSWER_WITHIN: Final = 10.0
"""Seconds for it to answer the last look, which no other follows: what it would tell is missed else."""
_PATIENT: Final = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})


@dataclass
class Pace:
    """How often the runs of a tree are looked at: seldom while all of them wait for people."""

    statuses: dict[str, Status | None] = field(default_factory=dict[str, Status | None])
    """Of those that are watched, by run id."""
    deaf: bool = False
    """No worker answered the last question: what is over is not asked about any more."""
    silent: bool = False
    """No worker answered the last question in all that time: the next last one gets no more than others."""
    door: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    """Of so many runs at once is asked where they are: a worker may have to replay each of them."""

    async def wait(self, run_id: str, status: Status | None, glance: Glance) -> None:
        """Until the next look at that run, after one at this glance."""
        self.statuses[run_id] = status
        patient = all(one in _PATIENT for one in self.statuses.values())
        await asyncio.sleep(glance.left_of(_SLOW if patient else glance.haste * self._crowd))

    @property
    def quick(self) -> timedelta:
        """Between two looks at a run that works."""
        return QUICK * self._crowd

    @property
    def _crowd(self) -> float:
        return max(1.0, len(self.statuses) / _AT_ONCE)


async def watch(run: WatchedRun, *, after_message: int = 0, pace: Pace | None = None) -> AsyncIterator[Event]:
    """Every event of the run from message `after_message` on, until it is over.

    A look costs one `describe`, and a query when the run's history has grown since; those who watch
    the same run over the same connection share them. If no worker answers the query, watching goes
    on with what the server knows.
    """
    pace = pace or Pace()
    looks = _Looks(run, after_message, pace)
    try:
        while True:
            events, glance = await looks.next()
            for event in events:
                yield event
            if glance.closed:
                finished = await glance.once("finished", partial(_finished, run, glance))
                for event in looks.seen.of_end(finished.result, behind=looks.behind(glance)):
                    yield event
                yield finished
                return
            await pace.wait(run.id, looks.seen.status, glance)
    finally:
        pace.statuses.pop(run.id, None)


async def watch_turn(
    run: WatchedRun, reply: "asyncio.Future[TurnReply]", *, after_message: int
) -> AsyncIterator[Event]:
    """Every event of a session from message `after_message` on, until the reply is there.

    Raises:
        PerdureError: whatever the reply raises.

    """
    looks = _Looks(run, after_message, Pace())
    while True:
        over = reply.done()
        events, glance = await looks.next(afresh=over)
        for event in events:
            yield event
        if over:
            yield TurnFinished(reply=reply.result())
            return
        await asyncio.wait({reply}, timeout=glance.left_of(looks.pause(glance)))


class _Looks:
    """One watcher's looks at a run, and what was new at each."""

    def __init__(self, run: WatchedRun, after_message: int, pace: Pace) -> None:
        self.seen = Seen(messages=after_message)
        self._run = run
        self._pace = pace
        self._below = Below(run)
        self._glances = Glances.of(run)
        self._glance: Glance | None = None
        """The newest there was a look at."""
        self._told: tuple[str, int] | None = None
        """How far the run was when a worker last told of it."""

    def pause(self, glance: Glance) -> timedelta:
        """How long until the next look is worth it."""
        return _SLOW if self.seen.status in _PATIENT else glance.haste

    def behind(self, glance: Glance) -> bool:
        """Whether no worker has told of all that had happened by that glance."""
        return glance.at != self._told

    async def next(self, *, afresh: bool = False) -> tuple[list[Event], Glance]:
        """What is new, and the glance at which that was seen; it began after the last one had ended.

        That of the first look, and of one `afresh`, begins only now: it shows all that the caller
        knows to have happened.
        """
        seen, news = self.seen, list[Event]()
        last = None if afresh else self._glance
        after = asyncio.get_running_loop().time() if last is None else last.ended
        glance = self._glance = await self._glances.next(after)
        if glance.at != self._told and not (glance.closed and self._pace.deaf):
            told = await _ask(self._run, seen.messages, self._below, glance, self._pace)
            if told is not None:
                self._told = glance.at
                news += told.news(seen)
        # After the messages: a step's text must not be told before the results of the step before it.
        news += seen.of_flights(glance.flights)
        return news, glance


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


async def _ask(run: WatchedRun, known: int, below: Below, glance: Glance, pace: Pace) -> _Told | None:
    """Status and new messages; None when no worker answers, or none has begun with the run yet."""
    try:
        # A question that gets lost must not keep what the server itself knows from those who watch.
        async with pace.door:
            patient = glance.closed and not pace.silent
            async with asyncio.timeout(_LAST_ANSWER_WITHIN if patient else _ANSWER_WITHIN):
                status, messages = await glance.once(("told", known), lambda: _answers(run, known))
                nodes = await below.nodes(status, messages, glance.described, glance)
    except TimeoutError:
        pace.silent = pace.silent or glance.closed
        return None
    except PerdureError as error:
        pace.deaf = isinstance(error, NotReachable) and not isinstance(error, ServerBusy)
        return None
    pace.deaf = pace.silent = False
    return _Told(status=status, messages=messages, nodes=nodes)


async def _answers(run: WatchedRun, known: int) -> tuple[RunStatus, list[Message]]:
    """Where the run is, and its messages from that number on."""
    status = await run.status()
    return status, await run.transcript(start=known) if status.messages > known else []


async def _finished(run: WatchedRun, glance: Glance) -> Finished:
    try:
        result = await run.result()
    except RunFailed as error:
        failure = Failure(kind=error.kind, message=str(error))
        return Finished(status="failed", result=error.result, error=failure)
    cancelled = glance.described.status == WorkflowExecutionStatus.CANCELED
    return Finished(status="cancelled" if cancelled else "completed", result=result)
