"""Watching a run: looks at it again and again, at no cost to its history."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.effects import Progress
from perdure.errors import PerdureError, RunFailed
from perdure.messages import Message
from perdure.wire import Failure, RunStatus, TurnReply

from .diff import Pending, Seen
from .events import Event, Finished, TurnFinished

if TYPE_CHECKING:
    from .run import Run

_QUICK = timedelta(milliseconds=100)
_SLOW = timedelta(seconds=1)
_PATIENT = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})


async def watch(run: "Run", *, after_message: int = 0) -> AsyncIterator[Event]:
    """Every event of the run from message `after_message` on, until it is over.

    A look costs one `describe`, and a query when the run's history has grown since. If no worker
    answers the query, watching goes on with what the server knows.
    """
    looks = _Looks(run, after_message)
    while True:
        events, status = await looks.next()
        for event in events:
            yield event
        if status != WorkflowExecutionStatus.RUNNING:
            yield await _finished(run, status)
            return
        await asyncio.sleep(looks.pause.total_seconds())


async def watch_turn(
    run: "Run", reply: "asyncio.Future[TurnReply]", *, after_message: int
) -> AsyncIterator[Event]:
    """Every event of a session from message `after_message` on, until the reply is there.

    Raises:
        PerdureError: whatever the reply raises.

    """
    looks = _Looks(run, after_message)
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

    def __init__(self, run: "Run", after_message: int) -> None:
        self._run = run
        self._seen = Seen(messages=after_message)
        self._looked: tuple[str, int] | None = None

    @property
    def pause(self) -> timedelta:
        """How long until the next look is worth it."""
        return _SLOW if self._seen.status in _PATIENT else _QUICK

    async def next(self) -> tuple[list[Event], WorkflowExecutionStatus | None]:
        """What is new, and whether the workflow is still there."""
        seen, news = self._seen, list[Event]()
        described = await self._run.described()
        at = (str(described.run_id), described.history_length)
        if at != self._looked:
            told = await _ask(self._run, seen.messages)
            if told is not None:
                self._looked = at
                status, messages = told
                news += [*seen.of_messages(messages), *seen.of_status(status)]
        # After the messages: a step's text must not be told before the results of the step before it.
        news += seen.of_flights(await _flights(self._run.client, described))
        return news, described.status


async def _ask(run: "Run", known: int) -> tuple[RunStatus, list[Message]] | None:
    """Status and new messages; None when no worker answers, or none has begun with the run yet."""
    try:
        status = await run.status()
        return status, await run.transcript(start=known) if status.messages > known else []
    except PerdureError:
        return None


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
