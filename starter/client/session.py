"""Session: a handle on one conversation that outlives its turns.

A message is an update. The call has two phases: handing the message over, after which it is durable, and
waiting for the reply of its turn. Either can be cut off: by a full server, by a continue-as-new, by a
worker that loses the update. The message id makes handing over idempotent, so it is repeated until the
session has the message. The reply is then awaited on the update, and polled by query once that is cut off.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic

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

from perdure.errors import InvalidRequest, NotReachable, PerdureError, RunEnded, RunNotFound, ServerBusy
from perdure.limits import Limits
from perdure.messages import Message, Part
from perdure.outputs import Output
from perdure.wire.events import Event
from perdure.wire.names import EXTEND, INTERRUPT, REPLY, SAY, SESSION_WORKFLOW, UPGRADE
from perdure.wire.requests import WhenBusy
from perdure.wire.results import Approval, ApprovalAnswer, Question, RunStatus, TurnReply, UpgradeAnswer

from ..watch.run import watch_turn
from .calls import ANSWER_WITHIN
from .errors import is_lost_update, refusal_error, session_ended_error
from .messages import address_of, plain_content
from .outages import ride_out
from .outputs import with_typed_output
from .run import Run

# Seconds between two attempts, growing from the first to the longest.
_FIRST_PAUSE: Final = 0.03
_LONGEST_PAUSE: Final = 1.0
# Messages handed over at once. The server allows ten pending updates a run, unanswered messages included.
_UPDATES_AT_ONCE: Final = 4
# Attempts to hand over a message to a session that is full, or continues as new.
_TRIES: Final = 40
# Times that a message is handed over again because its worker, or a continue-as-new, lost it.
_MOST_LOST: Final = 10

_Accepted = WorkflowUpdateHandle[TurnReply]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Start of a session, made together with its first message."""

    request: dict[str, Any]
    task_queue: str
    memo: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reopen: bool = False
    priority: Priority = Priority.default

    def operation(self, session_id: str) -> "WithStartWorkflowOperation[Any, Any]":
        """Return the start, as the part of an update-with-start."""
        return WithStartWorkflowOperation(
            SESSION_WORKFLOW,
            self.request,
            id=session_id,
            task_queue=self.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
            if self.reopen
            else WorkflowIDReusePolicy.REJECT_DUPLICATE,
            memo=self.memo,
            static_summary=f"session with {self.request['agent']}",
            priority=self.priority,
        )


class Session(Generic[Output]):
    """Handle on a session, by its id. Made by `Client.session`. A message is durable once it was accepted."""

    def __init__(self, run: Run[Output], opening: Opening | None = None) -> None:
        self.run = run
        """The session as a run: pause, resume, resolve_approval, result, and so on."""
        self._opening = opening
        self._slots = asyncio.Semaphore(_UPDATES_AT_ONCE)

    @property
    def id(self) -> str:
        """Id of the session, and of its workflow."""
        return self.run.id

    async def say(
        self,
        text: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002 - as everywhere
        when_busy: WhenBusy = "queue",
        call_id: str | Question | None = None,
        run_id: str | None = None,
    ) -> TurnReply[Output]:
        """Send a message and wait for the reply, however long its turn takes.

        With an `id`, sending the message again gives the same reply and has no second effect. While exactly one
        question waits, in the session or below it, the message answers it, and the reply is that of the turn. With
        several, `call_id` says which: a question of the status, the id of its call, or `RUN_ID/CALL`. Any other
        message that comes during a turn has its own turn afterwards. With `when_busy="steer"`, the agent reads it
        before its next step.

        Raises:
            InvalidRequest: the message, or the session's request, is wrong; the question does not wait, or several
                wait and none is named.
            RunEnded: the session has ended, and did not answer this message.
            NotReachable: no worker took the message; send it again, under the same id.
            OutputMismatch: the session was opened with the agent itself, and the output does not fit its type.

        """
        message = _message(text, id, when_busy) | address_of(call_id, run_id)
        try:
            accepted = await self._hand_over(message)
            reply = await self._wait_for_reply(accepted, message)
        except RunEnded:
            found = await self._query_reply(message["id"])
            if found is None or not found.done:
                raise
            reply = found
        return with_typed_output(reply, self.run.form, self.id)

    async def stream(
        self,
        text: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002
        when_busy: WhenBusy = "queue",
        call_id: str | Question | None = None,
        run_id: str | None = None,
    ) -> AsyncIterator[Event]:
        """Send a message as `say` does, and yield the session's events until the turn's TurnFinished."""
        message = _message(text, id, when_busy) | address_of(call_id, run_id)
        # Read before the message is handed over: its own turn must not count as known.
        known = None if self._opening else await self.status()
        accepted = await self._hand_over(message)
        reply = asyncio.create_task(self._wait_for_reply(accepted, message))
        try:
            async for event in watch_turn(self.run, reply, known=known):
                yield event
        finally:
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)

    async def status(self) -> RunStatus:
        """Return the status; between turns it is "idle"."""
        return await self.run.status()

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """Return the messages of all turns from number `start` on, in order."""
        return await self.run.transcript(start=start)

    async def resolve_approval(
        self, call_id: str | Approval, *, allow: bool, **decision: Any
    ) -> ApprovalAnswer:
        """Allow or deny a tool call that waits, as `Run.resolve_approval`."""
        return await self.run.resolve_approval(call_id, allow=allow, **decision)

    # Scripts written before `resolve_approval` had its name call it so.
    decide = resolve_approval
    """Earlier name of `resolve_approval`."""

    async def extend(
        self,
        *,
        limits: Limits,
        by: str = "",
        reason: str = "",
        id: str | None = None,  # noqa: A002
    ) -> TurnReply:
        """Let the last turn go on, which a limit has ended, and wait for its reply.

        Each limit that is set replaces the turn's own, as the total of the turn. It holds for this turn alone. What
        was done is not done again; the model reads who has granted what. With an `id`, sending it again changes
        nothing. A session that its own limits have closed is extended by `session.run.extend`.

        Raises:
            InvalidRequest: no limit has ended the last turn, or it could not go on with these; nothing was changed.
            RunEnded: the session has ended.
            NotReachable: no worker took the request; send it again, under the same id.

        """
        granted = limits.model_dump(mode="json", exclude_unset=True)
        request = {"id": id or uuid.uuid4().hex, "limits": granted, "by": by, "reason": reason}
        accepted = await self._hand_over(request, EXTEND)
        return await self._wait_for_reply(accepted, request, EXTEND)

    async def upgrade(
        self, *, by: str = "", reason: str = "", agent_version: str | None = None
    ) -> UpgradeAnswer:
        """Let the session take its agent or team as the workers have it now, between two turns.

        A turn that is under way ends with the version that it began with. Transcript and costs stay. With
        `agent_version`, the newest must have that spec hash, or one with this beginning. `status()` says which
        version the session has, and who has changed it.

        Raises:
            InvalidRequest: the newest version does not fit the session; nothing was changed.
            RunEnded: the session has ended.
            NotReachable: no worker answers.

        """
        words = {"by": by, "reason": reason, "agent_version": agent_version}
        plain = {name: value for name, value in words.items() if value}
        for attempt in range(_TRIES):
            try:
                return UpgradeAnswer.model_validate(await self.run.calls.update(UPGRADE, plain))
            except RunEnded:
                # A session that continues as new refuses updates for a moment, as one that has ended does.
                if not await self._is_open():
                    raise
            await asyncio.sleep(min(_FIRST_PAUSE * 1.3**attempt, _LONGEST_PAUSE))
        raise ServerBusy(f"session {self.id!r} continues as new all the time; try again later")

    async def interrupt(self) -> None:
        """End the current turn gracefully; the session goes on."""
        await self.run.calls.signal(INTERRUPT)

    async def close(self) -> None:
        """End the current turn, then the session, gracefully."""
        await self.run.stop()

    async def cancel(self) -> None:
        """End the session at once, as cancelled."""
        await self.run.cancel()

    async def _hand_over(self, message: dict[str, Any], update: str = SAY) -> _Accepted:
        """Hand over the message until the session accepts it; then it is durable."""
        reason = "it has too much to do"
        for attempt in range(_TRIES):
            try:
                async with self._slots:
                    accepted = await self._try_update(message, update)
            except RPCError as error:
                if error.status != RPCStatusCode.RESOURCE_EXHAUSTED:
                    raise
            except ServerBusy as error:
                reason = str(error)
            except RunEnded:
                # A session that continues as new refuses messages for a moment, as one that has ended does.
                if not await self._is_open():
                    raise
            else:
                self._opening = None
                return accepted
            await asyncio.sleep(min(_FIRST_PAUSE * 1.3**attempt, _LONGEST_PAUSE))
        raise ServerBusy(
            f"session {self.id!r} did not take the message: {reason}; say it again, under the same id"
        )

    async def _try_update(self, message: dict[str, Any], update: str) -> _Accepted:
        try:
            async with self.run.calls.translate_errors(passing=(RPCStatusCode.RESOURCE_EXHAUSTED,)):
                return await ride_out(lambda: self._update(message, update))
        except WorkflowUpdateFailedError as error:
            raise refusal_error(error) from None
        except WorkflowAlreadyStartedError:
            raise session_ended_error(self.id) from None
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            _raise_if_cancelled()
            raise NotReachable(
                f"{self.run.calls.no_answer_message()}; say it again, under the same id"
            ) from None

    async def _update(self, message: dict[str, Any], update: str) -> _Accepted:
        accepted = WorkflowUpdateStage.ACCEPTED
        if self._opening is None or update != SAY:
            return await self.run.handle.start_update(
                update,
                message,
                wait_for_stage=accepted,
                result_type=TurnReply,
                rpc_timeout=ANSWER_WITHIN,
            )
        opening = self._opening.operation(self.id)
        # The SDK puts the outcome of the start into a future of its own. Nobody else would retrieve its
        # error.
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

    async def _is_open(self) -> bool:
        try:
            description = await self.run.describe()
        except RunNotFound:
            return False
        return description.status == WorkflowExecutionStatus.RUNNING

    async def _wait_for_reply(
        self,
        accepted: _Accepted,
        message: dict[str, Any],
        update: str = SAY,
        *,
        lost: int = 0,
        is_repeated: bool = False,
    ) -> TurnReply:
        """Wait for the turn's reply: on the update, then by query, which adds nothing to the history."""
        try:
            reply = await self._update_result(accepted)
        except InvalidRequest:
            # The question may have been shown before the session knew it: see `RunCalls._execute_update`.
            if is_repeated or "call_id" not in message:
                raise
            again = await self._hand_over(message, update)
            return await self._wait_for_reply(again, message, update, lost=lost, is_repeated=True)
        pause = _FIRST_PAUSE
        while reply is None or not reply.done:
            if reply is not None and not reply.known:
                if lost == _MOST_LOST:
                    raise NotReachable(
                        f"session {self.id!r} lost the message {lost + 1} times; "
                        "say it again, under the same id"
                    )
                again = await self._hand_over(message, update)
                return await self._wait_for_reply(again, message, update, lost=lost + 1)
            if not await self._is_open():
                # It may have answered just before its end.
                reply = await self._query_reply(message["id"])
                if reply is None or not reply.done:
                    raise RunEnded(f"session {self.id!r} ended before it answered")
                return reply
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            reply = await self._query_reply(message["id"])
        return reply

    async def _update_result(self, accepted: _Accepted) -> TurnReply | None:
        """Return the result of the update, or None if only the wait for it was cut off."""
        try:
            async with self.run.calls.translate_errors():
                return await accepted.result()
        except WorkflowUpdateFailedError as error:
            refusal = refusal_error(error)
            if not is_lost_update(error) and not isinstance(refusal, ServerBusy):
                raise refusal from None
            await asyncio.sleep(_FIRST_PAUSE)
            return None  # the query says that the message is unknown, and it is handed over again
        except (RunEnded, NotReachable, WorkflowUpdateRPCTimeoutOrCancelledError):
            _raise_if_cancelled()
            return None  # the session still has the message

    async def _query_reply(self, message_id: str) -> TurnReply | None:
        """Return what the session knows of the message, or None if no worker answers now."""
        try:
            return await self.run.calls.query(REPLY, TurnReply, message_id)
        except PerdureError:
            return None


def _raise_if_cancelled() -> None:
    # The SDK turns the cancellation of a waiting task into an error of its own.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _message(text: str | list[Part], message_id: str | None, when_busy: WhenBusy) -> dict[str, Any]:
    return {"id": message_id or uuid.uuid4().hex, "text": plain_content(text), "when_busy": when_busy}
