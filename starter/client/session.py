"""Session: a handle on one conversation that outlives a turn."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.common import Priority, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import NotReachable, PerdureError, RunEnded, RunNotFound
from perdure.messages import Message, Part
from perdure.wire.events import Event
from perdure.wire.names import INTERRUPT, REPLY, SAY, SESSION_WORKFLOW
from perdure.wire.requests import WhenBusy
from perdure.wire.results import RunStatus, TurnReply

from ..watch.run import watch_turn
from .run import ANSWER_WITHIN, Run, is_lost_update, refusal_error

_SOONEST: Final = 0.03
_LATEST: Final = 1.0
_AT_THE_DOOR: Final = 4
"""Messages handed over at a time: the server allows ten a session, with those that wait for their reply."""
_TRIES: Final = 40
"""How often a message is offered to a session that is full, or just continuing as new."""
_MOST_LOST: Final = 10
"""How often a message is said again that its worker, or a continue-as-new, has lost."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a session is started by its first message."""

    request: dict[str, Any]
    task_queue: str
    memo: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reopen: bool = False
    priority: Priority = Priority.default

    def operation(self, session_id: str) -> "WithStartWorkflowOperation[Any, Any]":
        """The start, which is part of the update."""
        again = WorkflowIDReusePolicy.ALLOW_DUPLICATE
        return WithStartWorkflowOperation(
            SESSION_WORKFLOW,
            self.request,
            id=session_id,
            task_queue=self.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=again if self.reopen else WorkflowIDReusePolicy.REJECT_DUPLICATE,
            memo=self.memo,
            static_summary=f"session with {self.request['agent']}",
            priority=self.priority,
        )


class Session:
    """One session, by its id. Made by `Client.session`; what was said is durable once it was accepted."""

    def __init__(self, run: Run, opening: Opening | None = None) -> None:
        self.run = run
        """The same as a run: pause, resume, resolve_approval, result, and so on."""
        self._opening = opening
        self._door = asyncio.Semaphore(_AT_THE_DOOR)

    @property
    def id(self) -> str:
        """Its id, which is its workflow's."""
        return self.run.id

    async def say(
        self,
        text: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002 - as everywhere
        when_busy: WhenBusy = "queue",
    ) -> TurnReply:
        """Say something, and wait for the reply, however long its turn takes.

        With an `id`, saying it again gives the same reply and does nothing twice. A message that comes
        during a turn has a turn of its own afterwards; with `when_busy="steer"`, the agent reads it
        before its next step, or takes it as the answer to its question.

        Raises:
            InvalidRequest: the message, or the session's request, is wrong.
            RunEnded: the session is over, and this message was not answered in it.
            NotReachable: no worker took the message; say it again, under the same id.

        """
        message = _message(text, id, when_busy)
        try:
            accepted = await self._tell(message)
            return await self._answer(accepted, message)
        except RunEnded:
            reply = await self._recorded(message["id"])
            if reply is None or not reply.done:
                raise
            return reply

    async def stream(
        self,
        text: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002
        when_busy: WhenBusy = "queue",
    ) -> AsyncIterator[Event]:
        """`say`, and what happens in the session until the turn is over: the last is a TurnFinished."""
        message = _message(text, id, when_busy)
        known = 0 if self._opening else (await self.status()).messages
        accepted = await self._tell(message)
        reply = asyncio.create_task(self._answer(accepted, message))
        try:
            async for event in watch_turn(self.run, reply, after_message=known):
                yield event
        finally:
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)

    async def status(self) -> RunStatus:
        """Where the session is: "idle" between turns."""
        return await self.run.status()

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """All messages of all turns, in order."""
        return await self.run.transcript(start=start)

    async def resolve_approval(self, call_id: str, *, allow: bool, **decision: Any) -> None:
        """Allow or deny a tool call that waits, as `Run.resolve_approval`."""
        await self.run.resolve_approval(call_id, allow=allow, **decision)

    async def interrupt(self) -> None:
        """End the turn in hand, gracefully; the session goes on."""
        await self.run.signal(INTERRUPT)

    async def close(self) -> None:
        """End the session, gracefully: the turn in hand is ended first."""
        await self.run.stop()

    async def cancel(self) -> None:
        """End the session now, as cancelled."""
        await self.run.cancel()

    async def _tell(self, message: dict[str, Any]) -> "WorkflowUpdateHandle[TurnReply]":
        """Hand the message over; it is kept once this returns."""
        for attempt in range(_TRIES):
            try:
                async with self._door:
                    accepted = await self._offer(message)
            except RPCError as error:
                if error.status != RPCStatusCode.RESOURCE_EXHAUSTED:
                    raise
            except RunEnded:
                if not await self._goes_on():
                    raise
            else:
                self._opening = None
                return accepted
            await asyncio.sleep(min(_SOONEST * 1.3**attempt, _LATEST))
        raise NotReachable(f"session {self.id!r} has too much to do; say it again, under the same id")

    async def _offer(self, message: dict[str, Any]) -> "WorkflowUpdateHandle[TurnReply]":
        try:
            async with self.run.translate_errors(passing=(RPCStatusCode.RESOURCE_EXHAUSTED,)):
                return await self._update(message)
        except WorkflowUpdateFailedError as error:
            raise refusal_error(error) from None
        except WorkflowAlreadyStartedError:
            raise session_ended_error(self.id) from None
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            _stay_cancelled()
            raise NotReachable(f"{self.run.no_answer_message()}; say it again, under the same id") from None

    async def _update(self, message: dict[str, Any]) -> "WorkflowUpdateHandle[TurnReply]":
        accepted = WorkflowUpdateStage.ACCEPTED
        if self._opening is None:
            return await self.run.handle.start_update(
                SAY,
                message,
                wait_for_stage=accepted,
                result_type=TurnReply,
                rpc_timeout=ANSWER_WITHIN,
            )
        opening = self._opening.operation(self.id)
        # Whether it was started is told by a future of its own; unread, its error is reported at random.
        started = asyncio.create_task(opening.workflow_handle())
        try:
            return await self.run.client.start_update_with_start_workflow(
                SAY,
                message,
                start_workflow_operation=opening,
                wait_for_stage=accepted,
                result_type=TurnReply,
                rpc_timeout=ANSWER_WITHIN,
            )
        finally:
            started.cancel()
            await asyncio.gather(started, return_exceptions=True)

    async def _goes_on(self) -> bool:
        """Whether it only continued as new."""
        try:
            described = await self.run.describe()
        except RunNotFound:
            return False
        return described.status == WorkflowExecutionStatus.RUNNING

    async def _answer(
        self, accepted: "WorkflowUpdateHandle[TurnReply]", message: dict[str, Any], *, lost: int = 0
    ) -> TurnReply:
        """The turn's reply. Who was sent away asks by query, which costs the session nothing."""
        reply = await self._first_answer(accepted)
        pause = _SOONEST
        while reply is None or not reply.done:
            if reply is not None and not reply.known:
                if lost == _MOST_LOST:
                    raise NotReachable(
                        f"session {self.id!r} loses what it is told; say it again, under the same id"
                    )
                return await self._answer(await self._tell(message), message, lost=lost + 1)
            if not await self._goes_on():
                reply = await self._recorded(message["id"])
                if reply is None or not reply.done:
                    raise RunEnded(f"session {self.id!r} ended before it answered")
                return reply
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LATEST)
            reply = await self._recorded(message["id"])
        return reply

    async def _first_answer(self, accepted: "WorkflowUpdateHandle[TurnReply]") -> TurnReply | None:
        try:
            async with self.run.translate_errors():
                return await accepted.result()
        except WorkflowUpdateFailedError as error:
            if is_lost_update(error):
                return None  # which the session is asked about, and then it is said again
            raise refusal_error(error) from None
        except (RunEnded, NotReachable, WorkflowUpdateRPCTimeoutOrCancelledError):
            _stay_cancelled()
            return None  # the question is lost, not the message

    async def _recorded(self, message_id: str) -> TurnReply | None:
        """What the session says of the message; None when nobody can say anything now."""
        try:
            async with self.run.translate_errors():
                return await self.run.query(REPLY, TurnReply, message_id)
        except PerdureError:
            return None


def session_ended_error(session_id: str) -> RunEnded:
    """What to say of a session that is closed."""
    return RunEnded(
        f"session {session_id!r} is over; choose another id, or open it anew with reopen=True (--new)"
    )


def _stay_cancelled() -> None:
    """Temporal tells a cancelled wait by an error of its own: whoever cancelled us must not be ignored."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _message(text: str | list[Part], message_id: str | None, when_busy: WhenBusy) -> dict[str, Any]:
    plain = text if isinstance(text, str) else [part.model_dump(mode="json") for part in text]
    return {"id": message_id or uuid.uuid4().hex, "text": plain, "when_busy": when_busy}
