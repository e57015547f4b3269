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

from .changes import ChangeTracker
from .children import ChildRuns
from .poll import QUICK, Poll, SharedPolls
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

    async def wait(self, run_id: str, status: Status | None, poll: Poll) -> None:
        """Until the next look at that run, after one at this poll."""
        self.statuses[run_id] = status
        patient = all(one in _PATIENT for one in self.statuses.values())
        await asyncio.sleep(poll.left_of(_SLOW if patient else poll.haste * self._crowd))

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
            events, poll = await looks.next()
            for event in events:
                yield event
            if poll.closed:
                finished = await poll.once("finished", partial(_finished, run, poll))
                for event in looks.seen.track_end(finished.result, behind=looks.behind(poll)):
                    yield event
                yield finished
                return
            await pace.wait(run.id, looks.seen.status, poll)
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
        events, poll = await looks.next(afresh=over)
        for event in events:
            yield event
        if over:
            yield TurnFinished(reply=reply.result())
            return
        await asyncio.wait({reply}, timeout=poll.left_of(looks.pause(poll)))


class _Looks:
    """One watcher's looks at a run, and what was new at each."""

    def __init__(self, run: WatchedRun, after_message: int, pace: Pace) -> None:
        self.seen = ChangeTracker(messages=after_message)
        self._run = run
        self._pace = pace
        self._below = ChildRuns(run)
        self._polls = SharedPolls.for_run(run)
        self._poll: Poll | None = None
        """The newest there was a look at."""
        self._told: tuple[str, int] | None = None
        """How far the run was when a worker last told of it."""

    def pause(self, poll: Poll) -> timedelta:
        """How long until the next look is worth it."""
        return _SLOW if self.seen.status in _PATIENT else poll.haste

    def behind(self, poll: Poll) -> bool:
        """Whether no worker has told of all that had happened by that poll."""
        return poll.at != self._told

    async def next(self, *, afresh: bool = False) -> tuple[list[Event], Poll]:
        """What is new, and the poll at which that was seen; it began after the last one had ended.

        That of the first look, and of one `afresh`, begins only now: it shows all that the caller
        knows to have happened.
        """
        seen, news = self.seen, list[Event]()
        last = None if afresh else self._poll
        after = asyncio.get_running_loop().time() if last is None else last.ended
        poll = self._poll = await self._polls.next(after)
        if poll.at != self._told and not (poll.closed and self._pace.deaf):
            told = await _ask(self._run, seen.messages, self._below, poll, self._pace)
            if told is not None:
                self._told = poll.at
                news += told.news(seen)
        # After the messages: a step's text must not be told before the results of the step before it.
        news += seen.track_pending(poll.pending)
        return news, poll


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a worker told of a run."""

    status: RunStatus
    messages: list[Message]
    nodes: list[NodeStatus]

    def news(self, seen: ChangeTracker) -> list[Event]:
        if self.status.kind not in ("swarm", "graph"):
            seen.set_call_runs(self.nodes)
        return [*seen.track_messages(self.messages), *seen.track_status(self.status, self.nodes)]


async def _ask(run: WatchedRun, known: int, below: ChildRuns, poll: Poll, pace: Pace) -> _Told | None:
    """Status and new messages; None when no worker answers, or none has begun with the run yet."""
    try:
        # A question that gets lost must not keep what the server itself knows from those who watch.
        async with pace.door:
            patient = poll.closed and not pace.silent
            async with asyncio.timeout(_LAST_ANSWER_WITHIN if patient else _ANSWER_WITHIN):
                status, messages = await poll.once(("told", known), lambda: _answers(run, known))
                nodes = await below.nodes(status, messages, poll.described, poll)
    except TimeoutError:
        pace.silent = pace.silent or poll.closed
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


async def _finished(run: WatchedRun, poll: Poll) -> Finished:
    try:
        result = await run.result()
    except RunFailed as error:
        failure = Failure(kind=error.kind, message=str(error))
        return Finished(status="failed", result=error.result, error=failure)
    cancelled = poll.described.status == WorkflowExecutionStatus.CANCELED
    return Finished(status="cancelled" if cancelled else "completed", result=result)
