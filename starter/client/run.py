"""Run: a handle on one run. Everything it does is an ordinary Temporal call."""

import asyncio
import builtins
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import (
    InvalidRequest,
    NotReachable,
    PerdureError,
    RunEnded,
    RunFailed,
    RunNotFound,
    ServerBusy,
)
from perdure.limits import Limits
from perdure.messages import Message, Part
from perdure.wire.events import Event, TreeEvent
from perdure.wire.names import (
    LOST_UPDATE,
    PAUSE,
    REDRIVE,
    RESOLVE_APPROVAL,
    RESULT,
    RESUME,
    SEND,
    SESSION_OVER,
    SPEC_QUERY,
    STATUS,
    STOP,
    TRANSCRIPT,
)
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import Approval, NodeStatus, RunResult, RunStatus, TranscriptPage, Waiting
from perdure.wire.spec import ResolvedAgent

from ..watch.run import watch
from ..watch.tree import watch_tree
from .bulk import Outcome, act_on_each
from .inspect import Inspection, StatusPoll, inspect_run, poll_until_ended, read_reconciled_status
from .steps import Step, steps_of
from .waiting import choose_approval, waiting_approvals

_Answer = TypeVar("_Answer")
_OVER = ("already completed", "aborted by closing workflow")
"""What the server says of a run that is over, or was while we asked."""

_BROKEN = ("transport error", "h2 protocol error")
"""What the SDK says of a connection that broke under a call, with a status that means nothing."""

_TOO_LONG = "larger than max"
"""What is too long is said with the status of what is too much at once; and is so for ever."""

_SAY_AGAIN_AFTER = (0.03, 0.1, 0.3, 1.0)

ANSWER_WITHIN = timedelta(seconds=15)
"""How long a worker may take to answer a question about a run. Longer than a workflow task may take,
which is ten seconds: the SDK can lose one when it evicts a run that is asked something at that moment,
and what waits behind it is answered when the server gives it out anew.
"""
_ASK_AGAIN_AFTER = (0.25, 1.0, 4.0)
"""Seconds from one to the next. A worker that knows the run answers in a few milliseconds."""


class Run:
    """One run, by its id. Made by `Client.start` and `Client.get`; holds no state of its own."""

    def __init__(self, client: Client, id: str) -> None:  # noqa: A002 - Temporal's own word
        self.client = client
        self.id = id

    @property
    def handle(self) -> "WorkflowHandle[Any, Any]":
        """The Temporal handle underneath; follows the run when it continues as new."""
        return self.client.get_workflow_handle(self.id)

    async def result(self) -> RunResult:
        """Wait for the end. A run that was stopped, cancelled or limited has a result like any other.

        Raises:
            RunFailed: the run failed; `.kind` says how, `.result` what it had.
            RunNotFound: there is no such run.

        """
        handle = self.client.get_workflow_handle(self.id, result_type=RunResult)
        try:
            async with self.translate_errors():
                result: RunResult = await handle.result()
                return result
        except WorkflowFailureError as error:
            return await self._failed(error)

    async def _failed(self, error: WorkflowFailureError) -> RunResult:
        cause = error.cause
        if isinstance(cause, CancelledError):
            return await self._cancelled()
        if isinstance(cause, ApplicationError):
            details = [RunResult.model_validate(detail) for detail in cause.details[:1]]
            raise RunFailed(
                cause.message, kind=cause.type or "bug", result=details[0] if details else None
            ) from None
        if isinstance(cause, TerminatedError):
            raise RunFailed("the run was terminated", kind="Terminated") from None
        if isinstance(cause, TimeoutError):
            raise RunFailed("the workflow's own timeout ended the run", kind="TimedOut") from None
        raise RunFailed(str(cause), kind=type(cause).__name__) from error

    async def _cancelled(self) -> RunResult:
        """What a cancelled run had: asked of a worker, for Temporal keeps no result of it."""
        try:
            async with self.translate_errors():
                return await self.query(RESULT, RunResult)
        except (PerdureError, WorkflowQueryFailedError):
            return RunResult(agent="", stop_reason="cancelled", output="")

    async def status(self) -> RunStatus:
        """Where the run is: status, step, cost, what it waits for.

        Raises:
            NotReachable: no worker answers.

        """
        async with self.translate_errors():
            return await self.query(STATUS, RunStatus)

    async def reconciled_status(self) -> RunStatus:
        """Return the status, corrected for a run that was ended from outside and could not record it.

        Raises:
            NotReachable: no worker answers.

        """
        return await read_reconciled_status(self)

    def poll_status(self, *, interval: timedelta = timedelta(seconds=0.5)) -> AsyncIterator[StatusPoll]:
        """Yield the reconciled status every `interval` until the run is over, through outages of its worker.

        Raises:
            NotReachable: no worker answers the first poll.

        """
        return poll_until_ended(self, interval=interval)

    async def inspect(self) -> Inspection:
        """Return all that can be known of the run: status, steps, runs below, result.

        Raises:
            RunNotFound: there is no such run.

        """
        return await inspect_run(self)

    async def waiting(self) -> list[Waiting]:
        """Return what waits for a person in the run and below it: approvals, questions, parked runs."""
        return (await self.status()).waiting

    async def find_approval(self, call: str | None = None, *, run_id: str | None = None) -> Approval:
        """Return the waiting call of that name, or the only one that waits.

        `call` is a call id, `RUN_ID/CALL` or `PATH/CALL`; `run_id` is the id or path of a run below.

        Raises:
            InvalidRequest: no such call waits, or several do.

        """
        return choose_approval(self.id, await self.status(), call, run_id)

    async def spec(self) -> ResolvedAgent:
        """What the run was started with, and keeps: its agent, swarm or graph, and all it may start.

        Raises:
            InvalidRequest: no worker has resolved it yet.
            NotReachable: no worker answers.

        """
        async with self.translate_errors():
            return await self.query(SPEC_QUERY, ResolvedAgent)

    async def nodes(self) -> list[NodeStatus]:
        """The runs it has started, in order: a graph's nodes, a swarm's agents, agents it called as
        tools. Of the last, those that go on; of many, those that go on and the newest.
        """
        return (await self.status()).nodes

    async def children(self) -> list["Run"]:
        """Handles on those of `nodes` that are runs of their own; functions of a graph are none."""
        return [self.get(node.run_id) for node in await self.nodes() if node.run_id is not None]

    def get(self, run_id: str) -> "Run":
        """Another run, such as one of its tree, on the same connection."""
        return Run(self.client, run_id)

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """The messages from number `start` on, in order."""
        messages: list[Message] = []
        while True:
            want = TranscriptQuery(start=start + len(messages))
            async with self.translate_errors():
                page = await self.query(TRANSCRIPT, TranscriptPage, want)
            messages += page.messages
            if not page.messages or start + len(messages) >= page.length:
                return messages

    async def steps(self) -> list[Step]:
        """Each step: model, tool calls, durations, tokens, cost, attempts, errors."""
        return steps_of(await self.transcript())

    @overload
    def events(self, *, after_message: int = 0, tree: Literal[False] = False) -> AsyncIterator[Event]: ...

    @overload
    def events(self, *, after_message: int = 0, tree: Literal[True]) -> AsyncIterator[TreeEvent]: ...

    def events(self, *, after_message: int = 0, tree: bool = False) -> Any:
        """What happens, as it happens, from the beginning of the run or after a message, to its end.

        With `tree`, also what happens in the runs below it, each such event within a ChildEvent.
        """
        if tree:
            return watch_tree(self, after_message=after_message)
        return watch(self, after_message=after_message)

    async def send(
        self,
        message: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002
        run_id: str | None = None,
    ) -> int:
        """Say something to the agent: it reads it before its next step, or takes it as the answer
        to its question. Returns how many messages wait to be read.

        With an `id`, sending the same again changes nothing. `run_id` names a run below that it is
        for; without it, a swarm or graph gives it to the one that asks, or the only one that works.

        Raises:
            InvalidRequest: nobody could take it, or it does not say who of several is to.
            RunEnded: the run is over.

        """
        plain: Any = (
            message if isinstance(message, str) else [part.model_dump(mode="json") for part in message]
        )
        if run_id not in (None, self.id):
            plain = {"run_id": run_id, "text": plain}
        return int(await self._update(SEND, plain, id=id))

    async def resolve_approval(
        self,
        call_id: str,
        *,
        allow: bool,
        by: str = "",
        reason: str = "",
        arguments: dict[str, Any] | None = None,
        digest: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Allow or deny a tool call that waits for approval, in the run or in a run below it.

        With `arguments`, the call is allowed with these instead. `run_id` names the run that waits;
        it is needed when calls of several runs wait under the same id.

        Raises:
            InvalidRequest: the call does not wait, is not what `digest` says, or could be several.

        """
        given = {"arguments": arguments, "digest": digest, "run_id": run_id}
        decision: dict[str, Any] = {"call_id": call_id, "allow": allow, "by": by, "reason": reason}
        decision |= {name: value for name, value in given.items() if value is not None}
        await self._update(RESOLVE_APPROVAL, decision)

    async def resolve_approvals(
        self, *, allow: bool, by: str = "", reason: str = "", approvals: Sequence[Approval] | None = None
    ) -> list[Outcome]:
        """Allow or deny several waiting calls at once: those given, or all of the run and below it.

        Each decision holds for exactly the arguments in the approval. An outcome is named by
        `RUN_ID/CALL`; a call that was resolved elsewhere meanwhile has an error, and the rest are done.
        """
        if approvals is None:
            approvals = waiting_approvals(await self.status())
        calls = {f"{item.run_id or self.id}/{item.call_id}": item for item in approvals}

        async def resolve(name: str) -> None:
            item = calls[name]
            below = item.run_id if item.path else None
            await self.resolve_approval(
                item.call_id, allow=allow, by=by, reason=reason, digest=item.digest, run_id=below
            )

        return [outcome async for outcome in act_on_each(list(calls), resolve)]

    async def pause(self) -> None:
        """Let what is in flight finish and start nothing new."""
        await self.signal(PAUSE)

    async def resume(self) -> None:
        """Go on after a pause, or from exactly the step at which the run was parked."""
        await self.signal(RESUME)

    async def redrive(
        self, *, model: str | None = None, newest: bool = False, limits: Limits | None = None
    ) -> None:
        """Let a parked run go on from the step at which it was parked, changed if need be.

        `model` is asked first in place of the agent's own; with `newest` its worker's present version of the
        agent takes the place of the one it was started with; `limits` take the place of its own, those
        that are set. Nothing given, it goes on as it is.

        Raises:
            InvalidRequest: it is not parked, or cannot go on so; nothing was changed.

        """
        how: dict[str, Any] = {"newest": True} if newest else {}
        if model is not None:
            how["model"] = model
        if limits is not None:
            how["limits"] = limits.model_dump(mode="json", exclude_unset=True)
        await self._update(REDRIVE, how)

    async def check_parked(self) -> None:
        """Check that `redrive` would find the run parked.

        Raises:
            InvalidRequest: it is not parked.

        """
        status = await self.status()
        if status.status != "parked":
            raise InvalidRequest(f"run {self.id!r} is not parked: it is {status.doing}")

    async def stop(self) -> None:
        """Finish now, gracefully: completed, with the best partial answer."""
        await self.signal(STOP)

    async def cancel(self) -> None:
        """End now, as cancelled.

        Raises:
            RunEnded: the run is over.

        """
        described = await self.describe()
        if described.status != WorkflowExecutionStatus.RUNNING:
            raise RunEnded(f"run {self.id!r} is over; look at it with `perdure show {self.id}`")
        async with self.translate_errors():
            await self.handle.cancel()

    async def describe(self) -> WorkflowExecutionDescription:
        """What the server knows of the run, without asking a worker."""
        async with self.translate_errors():
            return await self.handle.describe()

    async def is_stuck(self) -> bool:
        """Whether the run's own code fails on its workers, again and again, until it is mended."""
        described = await self.describe()
        return described.raw_description.pending_workflow_task.attempt > 1

    async def signal(self, name: str) -> None:
        """Send a signal without argument."""
        async with self.translate_errors():
            await self.handle.signal(name)

    async def _update(self, name: str, argument: Any, *, id: str | None = None) -> Any:  # noqa: A002
        for pause in (*_SAY_AGAIN_AFTER, None):
            try:
                async with self.translate_errors():
                    return await self.handle.execute_update(name, argument, id=id, rpc_timeout=ANSWER_WITHIN)
            except WorkflowUpdateFailedError as error:
                if not is_lost_update(error):
                    raise refusal_error(error) from None
            except WorkflowUpdateRPCTimeoutOrCancelledError:
                raise NotReachable(
                    f"{self.no_answer_message()}. It was delivered all the same and will be acted upon "
                    "when one is: do not say it again, or say it under the same id"
                ) from None
            if pause is not None:
                await asyncio.sleep(pause)
        raise NotReachable(f"the worker of run {self.id!r} loses what it is told; nothing was changed")

    async def query(self, query: str, answer: type[_Answer], *args: Any) -> _Answer:
        """Ask a query of the run. Errors are Temporal's: see `translate_errors`."""

        async def ask() -> _Answer:
            given: _Answer = await self.handle.query(
                query, args=args, result_type=answer, rpc_timeout=ANSWER_WITHIN
            )
            return given

        return await _soon(ask)

    @asynccontextmanager
    async def translate_errors(self, *, passing: tuple[RPCStatusCode, ...] = ()) -> AsyncGenerator[None]:
        """Temporal's errors in our words; those of a status in `passing` as they are."""
        try:
            yield
        except RPCError as error:
            if error.status in passing:
                raise
            raise self._in_our_words(error) from error
        except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
            raise InvalidRequest(str(error)) from error
        except builtins.TimeoutError:
            raise NotReachable(self.no_answer_message()) from None

    def _in_our_words(self, error: RPCError) -> PerdureError:
        if error.status == RPCStatusCode.NOT_FOUND:
            if any(sign in error.message for sign in _OVER):
                return RunEnded(f"run {self.id!r} is over; look at it with `perdure show {self.id}`")
            return RunNotFound(f"there is no run {self.id!r} in namespace {self.client.namespace!r}")
        if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED) or (
            "Timeout expired" in error.message
        ):
            return NotReachable(self.no_answer_message())
        if (away := unreachable_error(error)) is not None:
            return away
        if "no poller" in error.message:
            return NotReachable(self.no_answer_message())
        if any(sign in error.message for sign in _OVER):
            return RunEnded(f"run {self.id!r} is over; look at it with `perdure show {self.id}`")
        if "Workflow Task in failed state" in error.message:
            return NotReachable(f"the worker cannot go on with run {self.id!r}: its log says why")
        return PerdureError(f"Temporal refused: {error.message}")

    def no_answer_message(self) -> str:
        """What to say when no worker does."""
        return (
            f"no worker answered for run {self.id!r} within {ANSWER_WITHIN.total_seconds():.0f} s; "
            "is one running? Start it with `perdure worker FILE`"
        )


def unreachable_error(error: RPCError) -> NotReachable | None:
    """What to say when the server did not answer, or has too much to do; None: it did answer."""
    if _is_overrun(error):
        return ServerBusy(f"the Temporal server has too much to do; try again later: {error.message}")
    if _is_unanswered(error):
        return NotReachable(f"the Temporal server does not answer: {error.message}")
    return None


def rpc_error(error: RPCError) -> PerdureError:
    """Return the error for a call that the server refused, or could not answer."""
    return unreachable_error(error) or InvalidRequest(f"Temporal refused: {error.message}")


def _is_overrun(error: BaseException | None) -> bool:
    """Whether the server has no room for one more question, or start, just now."""
    busy = isinstance(error, RPCError) and error.status == RPCStatusCode.RESOURCE_EXHAUSTED
    return busy and _TOO_LONG not in str(error)


def _is_unanswered(error: RPCError) -> bool:
    """Whether the server was not there to answer, or died before it did."""
    return error.status == RPCStatusCode.UNAVAILABLE or any(sign in error.message for sign in _BROKEN)


async def _soon(
    ask: Callable[[], Coroutine[Any, Any, _Answer]], *, again_after: Sequence[float] = _ASK_AGAIN_AFTER
) -> _Answer:
    """The first answer to a question that is asked again while none comes: one that meets a run between
    two steps may lie for a second before a worker has it, or be lost, while the next is answered at once.

    That the server has no room for another question is no answer to the first.
    """
    first = asyncio.create_task(ask())
    asked, pauses = {first}, iter(again_after)
    try:
        while True:
            done, pending = await asyncio.wait(
                asked, timeout=next(pauses, None), return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                if one is first or not _is_overrun(one.exception()):
                    return await one
            asked = pending if done else {*pending, asyncio.create_task(ask())}
    finally:
        for one in asked:
            one.cancel()


def is_lost_update(error: WorkflowUpdateFailedError) -> bool:
    """Whether no code of ours has seen the update: a worker's SDK can lose one together with its task, and
    the server refuses it then by itself. Nothing was changed: it can be said again.
    """
    return isinstance(error.cause, ApplicationError) and error.cause.type == LOST_UPDATE


def refusal_error(error: WorkflowUpdateFailedError) -> PerdureError:
    """Why the run took no update, or did not finish it."""
    cause = error.cause
    said = cause.message if isinstance(cause, ApplicationError) else str(cause)
    ended = isinstance(cause, ApplicationError) and cause.type == SESSION_OVER
    return RunEnded(said) if ended else InvalidRequest(said)
