"""Events of one run, from polls of the server, at no cost to its history.

A watcher polls at a fixed interval: 75 ms while the run works, a second while it waits for a person. A poll
is one `describe` call. When it shows a longer history, a worker is queried for status and new messages. If
no worker answers, watching goes on with what the server knows, and the next poll asks again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from temporalio.client import WorkflowExecutionStatus

from perdure.errors import PerdureError, RunFailed
from perdure.messages import Message
from perdure.wire.events import Event, Finished, TurnFinished
from perdure.wire.results import TEAM_KINDS, Failure, NodeStatus, RunStatus, Status, TurnReply

from .changes import ChangeTracker
from .children import ChildRuns
from .poll import POLL_INTERVAL, Poll, SharedPolls
from .watched import WatchedRun

_T = TypeVar("_T")

# Interval between polls of a run that waits for a person.
_IDLE_INTERVAL: Final = timedelta(seconds=1)
_IDLE: Final = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})
# Runs of a tree that are polled at the full rate, and workers' answers awaited at once.
_AT_ONCE: Final = 8
# Seconds for a worker to answer; the next poll asks again.
_ANSWER_WITHIN: Final = 2.0
# Seconds for a worker to answer about a run that has ended. No poll follows that could ask again.
_LAST_ANSWER_WITHIN: Final = 10.0


@dataclass
class WatchGroup:
    """Limits shared by the watchers of one tree of runs."""

    runs: int = 0
    """Runs watched now."""
    queries: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    """Limits the runs whose worker is queried at once: it may have to replay each of them."""
    timed_out: bool = False
    """A worker took all of `_LAST_ANSWER_WITHIN`. While none answers, the other runs' last queries get
    less.
    """

    def interval(self, status: Status | None = None) -> timedelta:
        """Return the interval between polls of a run of that status; longer in a tree of many runs."""
        return _IDLE_INTERVAL if status in _IDLE else POLL_INTERVAL * max(1.0, self.runs / _AT_ONCE)

    def answer_within(self, poll: Poll) -> float:
        """Return the seconds that a worker has to answer what this poll gives reason to ask."""
        return _LAST_ANSWER_WITHIN if poll.is_closed and not self.timed_out else _ANSWER_WITHIN


async def watch(
    run: WatchedRun, *, after_message: int = 0, group: WatchGroup | None = None
) -> AsyncIterator[Event]:
    """Yield every event of the run from message `after_message` on, until it has ended."""
    group = group or WatchGroup()
    watcher = _Watcher(run, after_message, group)
    group.runs += 1
    try:
        while True:
            events, poll = await watcher.next()
            for event in events:
                yield event
            if poll.is_closed:
                finished = await poll.share("finished", partial(_finish_event, run, poll))
                for event in watcher.tracker.track_end(finished.result, behind=watcher.is_behind(poll)):
                    yield event
                yield finished
                return
            await asyncio.sleep(watcher.pause(poll))
    finally:
        group.runs -= 1


async def watch_turn(
    run: WatchedRun, reply: "asyncio.Future[TurnReply]", *, known: RunStatus | None
) -> AsyncIterator[Event]:
    """Yield every event of a session after that status, until the reply is there. None: all events.

    Raises:
        PerdureError: whatever the reply raises.

    """
    watcher = _Watcher(run, known.messages if known else 0, WatchGroup())
    if known is not None:
        watcher.tracker.skip_changes(known)
    # The status of a team's session lists the nodes of its last turn until the next begins.
    ended = [node for node in (known.nodes if known else []) if node.state != "running"]
    watcher.tracker.nodes.update({node.key: node for node in ended})
    # The last poll begins after the reply is there. So all events of the turn come before TurnFinished.
    while not reply.done():
        events, poll = await watcher.next()
        for event in events:
            yield event
        await asyncio.wait({reply}, timeout=watcher.pause(poll))
    async for event in _watch_turn_end(watcher, reply.result()):
        yield event
    yield TurnFinished(reply=reply.result())


async def _watch_turn_end(watcher: "_Watcher", reply: TurnReply) -> AsyncIterator[Event]:
    """Yield the last events of a turn, until its last message is there or no worker has answered for long enough.

    The worker may have died as the turn ended. Another needs some seconds to take the session over.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + _LAST_ANSWER_WITHIN
    while True:
        events, poll = await watcher.next(fresh=True)
        for event in events:
            yield event
        if watcher.tracker.is_whole(reply) or clock() >= until:
            break
        await asyncio.sleep(watcher.pause(poll))
    for event in watcher.tracker.track_turn_end(reply):
        yield event


class _Watcher:
    """Polls of a run, and what each showed that was new to this watcher."""

    def __init__(self, run: WatchedRun, after_message: int, group: WatchGroup) -> None:
        self.tracker = ChangeTracker(messages=after_message)
        self._run = run
        self._group = group
        self._child_runs = ChildRuns(run)
        self._polls = SharedPolls.for_run(run)
        self._poll: Poll | None = None
        self._answered_at: tuple[str, int] | None = None
        """Position of the run when a worker last answered."""

    def pause(self, poll: Poll) -> float:
        """Return the seconds until the next poll is due."""
        return poll.remaining(self._group.interval(self.tracker.status))

    def is_behind(self, poll: Poll) -> bool:
        """Return whether no worker has answered about all that had happened by that poll."""
        return poll.position != self._answered_at

    async def next(self, *, fresh: bool = False) -> tuple[list[Event], Poll]:
        """Return the new events, and the poll that showed them. It began after the last one had ended.

        The first poll, and a `fresh` one, begins only now: it shows all that the caller knows to have
        happened.
        """
        last = None if fresh else self._poll
        after = asyncio.get_running_loop().time() if last is None else last.ended
        poll = self._poll = await self._polls.next(after)
        events: list[Event] = []
        if self.is_behind(poll):
            answer = await _query(self._run, self.tracker.messages, self._child_runs, poll, self._group)
            if answer is not None:
                self._answered_at = poll.position
                events += answer.track(self.tracker)
        # After the messages: a step's text must not come before the results of the step before it.
        events += self.tracker.track_pending(poll.pending)
        return events, poll


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """Answer of a worker: status, new messages and child runs."""

    status: RunStatus
    messages: list[Message]
    nodes: list[NodeStatus]

    def track(self, tracker: ChangeTracker) -> list[Event]:
        """Return the events that the answer is reason for."""
        tracker.is_team = self.status.spec_kind in TEAM_KINDS
        if not tracker.is_team:
            tracker.set_call_runs(self.nodes)
        return [*tracker.track_messages(self.messages), *tracker.track_status(self.status, self.nodes)]


async def _query(
    run: WatchedRun, start: int, child_runs: ChildRuns, poll: Poll, group: WatchGroup
) -> _Answer | None:
    """Return a worker's answer, with the messages from `start` on, or None if no worker answers."""
    try:
        # A query that hangs must not hold back what the server itself knows: partial text, and the end.
        async with group.queries:
            within = group.answer_within(poll)

            async def share(key: Hashable, call: Callable[[], Awaitable[_T]], /) -> _T:
                return await poll.share(key, call, within=within)

            status, messages = await share(("status", start), partial(_status, run, start))
            nodes = await child_runs.nodes(status, messages, poll.description, share)
    except TimeoutError:
        group.timed_out = group.timed_out or poll.is_closed
        return None
    except PerdureError:
        return None
    group.timed_out = False
    return _Answer(status=status, messages=messages, nodes=nodes)


async def _status(run: WatchedRun, start: int) -> tuple[RunStatus, list[Message]]:
    status = await run.status()
    return status, await run.transcript(start=start) if status.messages > start else []


async def _finish_event(run: WatchedRun, poll: Poll) -> Finished:
    try:
        result = await run.result()
    except RunFailed as error:
        failure = Failure(kind=error.kind, message=str(error))
        return Finished(status="failed", result=error.result, error=failure)
    cancelled = poll.description.status == WorkflowExecutionStatus.CANCELED
    return Finished(status="cancelled" if cancelled else "completed", result=result)
