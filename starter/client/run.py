"""Run: a handle on one run. Each method is an ordinary Temporal call, durable once it returns."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Generic, Literal, overload

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import CancelledError

from perdure.errors import InvalidRequest, PerdureError, RunEnded, ServerBusy
from perdure.limits import Limits
from perdure.messages import Message, Part
from perdure.outputs import Output, OutputForm
from perdure.wire.events import Event, TreeEvent
from perdure.wire.names import (
    PAUSE,
    REDRIVE,
    RESOLVE_APPROVAL,
    RESULT,
    RESUME,
    SEND,
    SPEC_QUERY,
    STATUS,
    STOP,
    TRANSCRIPT,
)
from perdure.wire.plain import problem_as_json
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import (
    Approval,
    ApprovalAnswer,
    NodeStatus,
    Question,
    Receipt,
    RunResult,
    RunStatus,
    TranscriptPage,
    Waiting,
)
from perdure.wire.spec import ResolvedAgent

from ..watch.run import watch
from ..watch.tree import watch_tree
from .bulk import Outcome, act_on_each
from .calls import RunCalls
from .decided import find_decision
from .errors import run_ended_error, run_failure
from .extension import extend_run
from .inspect import Inspection, StatusPoll, inspect_run, poll_until_ended, read_reconciled_status
from .messages import address_of, plain_content, receipt_of
from .outages import ride_out
from .outputs import with_typed_output
from .steps import Step, steps_of
from .waiting import choose_approval, choose_question, waiting_approvals

_MOST_SHOWN = 1000
"""Call ids whose approvals a handle remembers."""


class Run(Generic[Output]):
    """Handle on a run, by its id. Made by `Client.start` and `Client.get`.

    It holds no state of the run, but it remembers which approvals it has shown.
    """

    def __init__(self, client: Client, id: str, form: OutputForm | None = None) -> None:  # noqa: A002 - Temporal's own word
        self.client = client
        self.id = id
        self.form = form
        """Form of its output, where the agent itself is known."""
        self.calls = RunCalls(client, id)
        """Temporal calls on the run, with errors of ours."""
        self._shown: dict[str, dict[str, Approval]] = {}
        """Approvals that `status` has returned, by call id and digest."""

    @property
    def handle(self) -> "WorkflowHandle[Any, Any]":
        """Temporal's handle. It follows the run when that continues as new."""
        return self.calls.handle

    async def result(self) -> RunResult[Output]:
        """Wait for the end. A run that was stopped, cancelled or limited has a result like any other.

        Each outage of the server is ridden out for a minute.

        Raises:
            RunFailed: the run failed; `.kind` says how, `.result` is what it had.
            RunNotFound: there is no such run.
            NotReachable: the server was away for longer; the run is not affected.
            OutputMismatch: the run was started with the agent itself, and the output does not fit its `output_type`.

        """
        return with_typed_output(await self._result(), self.form, self.id)

    async def _result(self) -> RunResult[Any]:
        handle = self.client.get_workflow_handle(self.id, result_type=RunResult)
        try:
            async with self.calls.translate_errors():
                result: RunResult[Any] = await ride_out(handle.result)
                return result
        except WorkflowFailureError as error:
            if isinstance(error.cause, CancelledError):
                return await self._result_of_cancelled()
            raise run_failure(error) from None

    async def _result_of_cancelled(self) -> RunResult[Any]:
        # Temporal keeps no result of a cancelled workflow, but its worker can replay it and tell.
        try:
            return await self.calls.query(RESULT, RunResult)
        except PerdureError:
            return RunResult(agent="", stop_reason="cancelled", output="")

    async def status(self) -> RunStatus:
        """Return the status: step, cost, what waits for a person.

        Raises:
            NotReachable: no worker answers.

        """
        status = await self.calls.query(STATUS, RunStatus)
        for item in status.waiting:
            if isinstance(item, Approval):
                self._shown.setdefault(item.call_id, {})[item.digest] = item
        while len(self._shown) > _MOST_SHOWN:
            del self._shown[next(iter(self._shown))]
        return status

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

    async def find_question(self, call: str | None = None, *, run_id: str | None = None) -> Question:
        """Return the waiting question of that name, or the only one that waits; names are those of `find_approval`.

        Raises:
            InvalidRequest: no such question waits, or several do.

        """
        return choose_question(self.id, await self.status(), call, run_id)

    async def spec(self) -> ResolvedAgent:
        """Return the pinned spec: the agent, swarm or graph of the run, and all that it may start.

        Raises:
            InvalidRequest: no worker has resolved it yet.
            NotReachable: no worker answers.

        """
        return await self.calls.query(SPEC_QUERY, ResolvedAgent)

    async def nodes(self) -> list[NodeStatus]:
        """Return the runs that it has started, in order: of nodes, of a swarm's agents, of agents as tools.

        Of agents as tools, only those that have not ended. Of many nodes, those and the newest.
        """
        return (await self.status()).nodes

    async def children(self) -> list["Run"]:
        """Return handles on those of `nodes` that are runs of their own; functions of a graph are not."""
        return [self.get(node.run_id) for node in await self.nodes() if node.run_id is not None]

    def get(self, run_id: str) -> "Run":
        """Return another run on the same connection, such as one of its tree."""
        return Run(self.client, run_id)

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """Return the messages from number `start` on, in order."""
        messages: list[Message] = []
        while True:
            wanted = TranscriptQuery(start=start + len(messages))
            # A page holds about 400 KB: the server limits the answer of a query.
            page = await self.calls.query(TRANSCRIPT, TranscriptPage, wanted)
            messages += page.messages
            if not page.messages or start + len(messages) >= page.length:
                return messages

    async def steps(self) -> list[Step]:
        """Return each step: model, tool calls, durations, tokens, cost, attempts, errors."""
        return steps_of(await self.transcript())

    @overload
    def events(self, *, after_message: int = 0, tree: Literal[False] = False) -> AsyncIterator[Event]: ...

    @overload
    def events(self, *, after_message: int = 0, tree: Literal[True]) -> AsyncIterator[TreeEvent]: ...

    def events(self, *, after_message: int = 0, tree: bool = False) -> Any:
        """Yield the events of the run as they happen, from its beginning or after a message, to its end.

        With `tree`, also those of the runs below it, each inside a ChildEvent.
        """
        if tree:
            return watch_tree(self, after_message=after_message)
        return watch(self, after_message=after_message)

    async def send(
        self,
        message: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002
        call_id: str | Question | None = None,
        run_id: str | None = None,
    ) -> Receipt:
        """Send a message to the agent, or the answer to a question, and return what became of it.

        `call_id` is a question of the status, the id of its call, or `RUN_ID/CALL`. Without it, the message answers
        the only question that waits in the run and below it. Where none waits, the agent reads it before its next
        step; a swarm or graph passes it to the only run that works. `run_id` names the run below that it is for. With
        an `id`, sending the message again changes nothing; so does the same answer to the same question.

        Raises:
            InvalidRequest: the question does not wait, or several wait and none is named; the words list those that
                do. Or no run could take the message, or several could.
            RunEnded: the run has ended.

        """
        plain, address = plain_content(message), address_of(call_id, run_id)
        argument = {"text": plain, **address} if address else plain
        if id is not None and call_id is not None:
            # Not the id of the update: for that the server repeats its first answer, which names no repetition.
            return receipt_of(await self.calls.update(SEND, {**argument, "id": id}))
        return receipt_of(await self.calls.update(SEND, argument, id=id))

    async def resolve_approval(
        self,
        call_id: str | Approval,
        *,
        allow: bool,
        by: str = "",
        reason: str = "",
        arguments: dict[str, Any] | None = None,
        digest: str | None = None,
        run_id: str | None = None,
    ) -> ApprovalAnswer:
        """Allow or deny a tool call that waits for approval, in the run or in a run below it.

        `call_id` is an approval of the status, or the id of a call. An approval names exactly what was seen. With an
        id, `digest` does; for a call of a run below it is needed, unless this handle has shown a single approval under
        that id. With `arguments`, the call is allowed with these
        instead. The same decision again changes nothing: its answer is the first one, with `repeated` set.

        Raises:
            InvalidRequest: the call does not wait, is not what was seen, or was decided otherwise.

        """
        if isinstance(call_id, str) and digest is None:
            call_id = self._only_shown(call_id, run_id)
        if isinstance(call_id, Approval):
            digest, run_id = digest or call_id.digest, run_id or (call_id.run_id if call_id.path else None)
            call_id = call_id.call_id
        problem = problem_as_json(arguments)
        if problem is not None:
            raise InvalidRequest(f"the arguments cannot be used: {problem}")
        # The digest and the run are checked by the run itself, in the order of its history.
        optional = {"arguments": arguments, "digest": digest, "run_id": run_id}
        decision: dict[str, Any] = {"call_id": call_id, "allow": allow, "by": by, "reason": reason}
        decision |= {name: value for name, value in optional.items() if value is not None}
        try:
            answer = await self._hand_over(decision)
        except RunEnded:
            below = self.get(run_id or self.id)
            made = await find_decision(below.id, below.transcript, decision)
            if made is None:
                raise
            return made
        # A worker of an earlier build answers nothing.
        return ApprovalAnswer.model_validate(answer or {"call_id": call_id, "allow": allow, "by": by})

    async def _hand_over(self, decision: dict[str, Any]) -> Any:
        """Hand a decision over to the run, or to the run below that waits for it; return the run's answer."""
        try:
            return await self.calls.update(RESOLVE_APPROVAL, decision)
        except ServerBusy:
            below = decision.get("run_id")
            if "digest" not in decision or below in (None, self.id):
                raise
            # The run that waits takes it directly. It continues as new while it waits, so it has room.
            own = {name: value for name, value in decision.items() if name != "run_id"}
            return await self.get(below).calls.update(RESOLVE_APPROVAL, own)

    def _only_shown(self, call_id: str, run_id: str | None) -> str | Approval:
        """Return the approval that this handle has shown under the id, or the id if there were none or several."""
        shown = [item for item in self._shown.get(call_id, {}).values() if run_id in (None, item.run_id)]
        return shown[0] if len(shown) == 1 else call_id

    # Scripts written before `resolve_approval` had its name call it so.
    decide = resolve_approval
    """Earlier name of `resolve_approval`."""

    async def resolve_approvals(
        self, *, allow: bool, by: str = "", reason: str = "", approvals: Sequence[Approval] | None = None
    ) -> list[Outcome]:
        """Allow or deny several waiting calls at once: those given, or all of the run and below it.

        Each decision holds for exactly the arguments in the approval. An outcome is named by
        `RUN_ID/CALL`; a call that was decided otherwise meanwhile has an error, and the rest are done.
        """
        if approvals is None:
            approvals = waiting_approvals(await self.status())
        calls = {f"{item.run_id or self.id}/{item.call_id}": item for item in approvals}

        async def resolve(name: str) -> None:
            await self.resolve_approval(calls[name], allow=allow, by=by, reason=reason)

        return [outcome async for outcome in act_on_each(list(calls), resolve)]

    async def pause(self) -> None:
        """Let pending activities finish and start nothing new."""
        await self.calls.signal(PAUSE)

    async def resume(self) -> None:
        """Continue after a pause, or from the step at which the run was parked."""
        await self.calls.signal(RESUME)

    async def redrive(
        self, *, model: str | None = None, newest: bool = False, limits: Limits | None = None
    ) -> None:
        """Continue a parked run from the step at which it was parked, changed as the arguments say.

        `model` is called before the agent's own models. With `newest`, the worker's present version of the
        agent replaces the pinned one. Each limit that is set in `limits` replaces the run's own.

        Raises:
            InvalidRequest: the run is not parked, or cannot continue so; nothing was changed.

        """
        changes: dict[str, Any] = {"newest": True} if newest else {}
        if model is not None:
            changes["model"] = model
        if limits is not None:
            # Only limits that were set: defaults would replace the run's own.
            changes["limits"] = limits.model_dump(mode="json", exclude_unset=True)
        await self.calls.update(REDRIVE, changes)

    async def extend(
        self, *, limits: Limits, by: str = "", reason: str = "", user: str | None = None
    ) -> "Run":
        """Let a run go on that a limit has ended, from where it stood; returns this handle.

        Each limit that is set replaces the run's own. It is a total: what the run has used counts. The id stays, and
        so do transcript, costs and idempotency keys. `by` and `reason` are recorded, and the model reads them. With
        `user`, the run must act on behalf of this user. The same extension again changes nothing while the run
        goes on.

        Raises:
            InvalidRequest: no limit has ended it, or it could not go on with these; nothing was changed.
            RunNotFound: there is no such run, or the server no longer keeps its history.
            NotReachable: no worker answers.

        """
        await extend_run(self, limits=limits, by=by, reason=reason, user=user)
        return self

    async def check_parked(self) -> None:
        """Check that `redrive` would find the run parked.

        Raises:
            InvalidRequest: it is not parked.

        """
        status = await self.status()
        if status.status != "parked":
            raise InvalidRequest(f"run {self.id!r} is not parked: it is {status.doing}")

    async def stop(self) -> None:
        """End the run gracefully: it completes with the best partial answer."""
        await self.calls.signal(STOP)

    async def cancel(self) -> None:
        """End the run at once, as cancelled.

        Raises:
            RunEnded: the run has ended.

        """
        description = await self.describe()
        # The server accepts, and ignores, the cancellation of a workflow that has ended.
        if description.status != WorkflowExecutionStatus.RUNNING:
            raise run_ended_error(self.id)
        async with self.calls.translate_errors():
            await ride_out(self.handle.cancel)

    async def describe(self) -> WorkflowExecutionDescription:
        """Return what the server knows of the run; no worker is asked."""
        return await self.calls.describe()

    # As with `decide`: a script does not break because a method has a better name.
    described = describe
    """Earlier name of `describe`."""

    async def is_stuck(self) -> bool:
        """Return whether its workflow task fails and is retried, as after an incompatible change of code."""
        description = await self.describe()
        return description.raw_description.pending_workflow_task.attempt > 1
