"""Child runs of a run, as child workflows, and functions of a graph, as activities."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    TimeoutError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

from perdure.limits import Limits
from perdure.members import for_member
from perdure.messages import Text, ToolResult
from perdure.scheduling import Start
from perdure.texts import first_bytes, mark_cut, mask_secrets, truncate_middle
from perdure.wire.effects import FUNCTION_ATTEMPTS, EarlierChild, KeepText, KeptText, NodeCall, most_attempts
from perdure.wire.ids import child_key, child_run_id
from perdure.wire.names import (
    CALL_NODE,
    END_EARLIER_CHILD,
    GRANT,
    KEEP_TEXT,
    PAUSE,
    REPORT,
    RESUME,
    STOP,
    TOO_LARGE_TYPES,
    WORKER_SHUTDOWN,
    WORKFLOW,
)
from perdure.wire.requests import RunRequest
from perdure.wire.results import Failure, RunResult, StopReason
from perdure.wire.spec import ResolvedAgent
from perdure.wire.tree import ChildInput, Grant, Lease, Lineage, Report
from perdure.wire.uncertain import MAY_HAVE_TAKEN_EFFECT, join_sentences, mark_uncertain

from .child_outcomes import outcome_of_bug, outcome_of_error
from .elsewhere import SoughtActivity
from .ending import Ending, RunIsEndingError
from .engine.agent_calls import is_error, may_have_effect, result_text
from .engine.clocks import node_clock_stands
from .engine.cut import extension_for, lease_below
from .engine.events import ChildEnded, Event
from .engine.family import function_under_way
from .engine.handovers import preview_bytes, prompt_with_notes
from .engine.state import AgentState, Call, RunState
from .engine.team_state import TeamState
from .identity import earlier_attempts, function_key, identity_below
from .memory import earlier_run
from .payloads import read_json, read_payload

_FUNCTION_TIMEOUT = timedelta(minutes=10)
_FUNCTION_HEARTBEAT = timedelta(seconds=10)
_FINAL_REPORT_WITHIN = timedelta(seconds=1)
_CALLS_BELOW = "Tool calls that it had made may or may not have taken effect."
_STARTS = 3
"""Times that a child is started whose id is not free yet."""
_PARENT = "/"
"""In the place of a child's key."""


class ChildRuns:
    """Starts child runs, sends signals to them, and reports their ends as events."""

    def __init__(self, report: Callable[[Event], None], ending: Ending) -> None:
        self._report = report
        self._ending = ending
        self._handles: dict[str, workflow.ChildWorkflowHandle[Any, Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outgoing: dict[str, deque[tuple[str, list[Any]]]] = {}
        """Signals to send, by child: the server keeps no order among several to one run."""
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._parent = ""

    @property
    def count(self) -> int:
        """Number of children that have not ended."""
        return len(self._tasks)

    def call_agent(self, state: AgentState, call: Call) -> None:
        """Start the run of an agent that the model called."""
        tool = state.spec.tool(call.call.name)
        assert tool is not None, "only calls of known tools are started"
        assert tool.agent is not None, "a tool of kind agent names one"
        key = child_key(tool.agent, call.call.id)
        start = Start(
            key=key,
            node=tool.agent,
            kind="agent",
            member=tool.agent,
            prompt=str(call.call.arguments.get("input", "")).strip() or "(nothing was said)",
            timeout=tool.deadline,
        )
        self._launch(key, self._called_agent(state, start, call))

    def start_nodes(self, team: TeamState, starts: Sequence[Start]) -> None:
        """Start these nodes."""
        for start in starts:
            body = self._function(team, start) if start.kind == "function" else self._child(team, start)
            self._launch(start.key, body)

    def cancel(self, reason: StopReason | None) -> None:
        """Ask every child to end: gracefully, unless the run is cancelled."""
        for key, task in list(self._tasks.items()):
            handle = self._handles.get(key)
            if handle is None or reason in (None, "cancelled"):
                task.cancel()
            else:
                self._send(key, STOP)

    def forward(self, signal: str) -> None:
        """Send a person's signal (pause, resume) to all children."""
        assert signal in (PAUSE, RESUME), "a stop goes through `cancel`"
        for key in list(self._tasks):
            self._send(key, signal)

    def grant(self, key: str, grant: Grant) -> None:
        """Answer a child's budget request."""
        self._send(key, GRANT, grant)

    def _send(self, key: str, signal: str, *args: Any) -> None:
        self._outgoing.setdefault(key, deque()).append((signal, list(args)))
        self._send_queued(key)

    def report_to_parent(self, lineage: Lineage, report: Report) -> None:
        """Send a report to the parent, after those before it."""
        self._parent = lineage.parent
        self._send(_PARENT, REPORT, report)

    async def report_final(self, lineage: Lineage, report: Report) -> None:
        """Send the last report, and wait until it has arrived: the end of the run comes after it."""
        parent = workflow.get_external_workflow_handle(lineage.parent)
        timer = asyncio.create_task(workflow.sleep(_FINAL_REPORT_WITHIN))
        sending = asyncio.create_task(self._send_quietly(parent, report))
        # The signal itself is not cancelled: the SDK fails the workflow task over one that is on its way.
        with suppress(asyncio.CancelledError):
            await workflow.wait_condition(lambda: sending.done() or timer.done())
        timer.cancel()

    async def _send_quietly(self, parent: "workflow.ExternalWorkflowHandle[Any]", report: Report) -> None:
        with suppress(FailureError):  # the parent has ended meanwhile
            await parent.signal(REPORT, report)

    @property
    def is_flushed(self) -> bool:
        """True when every signal is sent."""
        return not self._sending

    async def flush_reports(self) -> None:
        """Wait until every report to the parent is sent. A child that has not ended by now is the server's to end."""
        await workflow.wait_condition(lambda: _PARENT not in self._sending)

    def _send_queued(self, key: str) -> None:
        """Send the queued signals one after the other; to a child, once it has started."""
        # A signal to a child that has not started would fail, and be lost.
        if key in self._sending or (key != _PARENT and key not in self._handles):
            return

        async def send() -> None:
            waiting = self._outgoing.get(key, deque())
            while waiting and (target := self._target(key)) is not None:
                signal, args = waiting.popleft()
                with suppress(FailureError):  # the receiver has ended meanwhile
                    await target.signal(signal, args=args)
            del self._sending[key]

        self._sending[key] = asyncio.create_task(send())

    def _target(self, key: str) -> Any:
        if key == _PARENT:
            return workflow.get_external_workflow_handle(self._parent)
        return self._handles.get(key)

    def abandon(self) -> None:
        """Forget what has not ended: a late end of it reports nothing. A turn's work must not reach the next turn."""
        for known in (self._tasks, self._handles, self._outgoing):
            known.clear()

    def _launch(self, key: str, body: Any) -> None:
        async def report() -> None:
            try:
                event: Event = await body
            except Exception as error:  # an end that nobody hears of would leave the run waiting
                event = ChildEnded(key=key, outcome=outcome_of_bug(key, error), at=workflow.now())
            # Abandoned, or replaced by a child of the same key in another turn.
            if self._tasks.get(key) is not task:
                return
            for known in (self._tasks, self._handles, self._outgoing):
                known.pop(key, None)
            self._report(event)

        task = self._tasks[key] = asyncio.create_task(report())

    async def _child(self, state: RunState, start: Start) -> Event:
        try:
            started = await self._with_short_notes(state, start)
        except (RunIsEndingError, asyncio.CancelledError):
            # Nothing was begun. Its messages are named, as those of any run that never began.
            outcome = outcome_of_error(start, asyncio.CancelledError(), began=False)
        else:
            outcome = await self._outcome(state, started)
        return ChildEnded(key=start.key, outcome=outcome, at=workflow.now())

    async def _with_short_notes(self, state: RunState, start: Start) -> Start:
        """Return the start with what the run before it has done in as many bytes as a result of it may have.

        The whole is kept aside, and the run can read on in it.

        Raises:
            RunIsEndingError: the team is to end, so the run is not to be started.

        """
        left = start.handed_on
        most = preview_bytes(state, start)
        if left is None or len(left.done.encode(errors="replace")) <= most:
            return start
        kept = await self._ending.race(_keep_text(left.done, most))
        spilled = left.spilled or kept.spilled is not None
        return replace(start, handed_on=left.model_copy(update={"done": kept.shown, "spilled": spilled}))

    async def _called_agent(self, state: AgentState, start: Start, call: Call) -> Event:
        try:
            outcome = await self._outcome(state, start)
            result = await self._tool_result(state, call, outcome)
        except Exception as error:  # without a result the call, and so the run, would wait for ever
            outcome = outcome_of_bug(start.key, error)
            result = _as_result(call, KeptText(shown=result_text(outcome)), outcome)
        return ChildEnded(key=start.key, outcome=outcome, at=workflow.now(), result=result)

    async def _outcome(self, state: RunState, start: Start) -> RunResult:
        assert start.member is not None, "only functions have none"
        handle = None
        try:
            handle = await self._start(state, start)
            self._handles[start.key] = handle
            self._send_queued(start.key)
            outcome = read_payload(await handle, RunResult)
        except (FailureError, ValueError, asyncio.CancelledError) as error:
            return outcome_of_error(start, error, began=handle is not None)
        return outcome

    async def _tool_result(self, state: AgentState, call: Call, outcome: RunResult) -> ToolResult:
        """Return the answer for the model. A text that is too long is kept aside, and can be read on."""
        text, most = result_text(outcome), state.spec.result_preview_bytes
        data = text.encode(errors="replace")
        kept = KeptText(shown=text)
        if len(data) > most:
            try:
                # The outcome is known, and so is its cost: a run that is to end must not lose it to a slow store.
                kept = await self._ending.race(_keep_text(text, most))
            except (RunIsEndingError, asyncio.CancelledError):
                kept = _cut_text(data, most, "the run ended before the rest was kept")
        return _as_result(call, kept, outcome)

    async def _start(self, state: RunState, start: Start) -> "workflow.ChildWorkflowHandle[Any, RawValue]":
        """Start the child. The id may be that of a child of an earlier execution, which is ended then."""
        run_id = child_run_id(state.id, start.key)
        for _ in range(_STARTS):
            with suppress(WorkflowAlreadyStartedError):
                return await _start_child(state, start, run_id)
            if not await _end_earlier(run_id):
                break
        raise WorkflowAlreadyStartedError(run_id, WORKFLOW)

    async def _function(self, team: TeamState, start: Start) -> Event:
        outcome = await _function_outcome(team, start)
        return ChildEnded(key=start.key, outcome=outcome, at=workflow.now())


def _as_result(call: Call, kept: KeptText, outcome: RunResult) -> ToolResult:
    result = ToolResult(
        call_id=call.call.id,
        name=call.call.name,
        content=[Text(text=kept.shown)],
        is_error=is_error(outcome),
        spilled=kept.spilled,
    )
    return mark_uncertain(result, _CALLS_BELOW) if may_have_effect(outcome) else result


async def _start_child(
    state: RunState, start: Start, run_id: str
) -> "workflow.ChildWorkflowHandle[Any, RawValue]":
    return await workflow.start_child_workflow(
        WORKFLOW,
        args=[
            request_for(state, start).to_json(),
            input_for(state, start, workflow.now(), _place_below(state, start)),
        ],
        id=run_id,
        # Never a policy that ends a running workflow: whose it is, only the server knows.
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        result_type=RawValue,
        # A child whose parent was terminated must not go on spending.
        parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
        # The child reports what it has used before it ends, so its end is waited for.
        cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
        # A failed run is a result for the model or the graph. Its activities have had their retries.
        retry_policy=RetryPolicy(maximum_attempts=1),
        static_summary=summary_of(start),
    )


async def _end_earlier(run_id: str) -> bool:
    """End the child that an earlier execution of this run has left behind; return whether the id is free."""
    free = await workflow.execute_activity(
        END_EARLIER_CHILD,
        EarlierChild(run_id=run_id),
        result_type=RawValue,
        start_to_close_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(maximum_attempts=5),
        summary=f"is {run_id} ours?",
    )
    return read_json(free) is True


def request_for(state: RunState, start: Start) -> RunRequest:
    """Return the request of a child: on behalf of the same person, with the same context."""
    assert start.member is not None, "only functions have none"
    request = state.request
    own: dict[str, Any] = {
        "agent": start.member,
        "prompt": prompt_with_notes(start),
        "stream": request.stream,
        "limits": _limits_for_child(state),
    }
    passed: dict[str, Any] = {"user": request.user, "roles": request.roles, "context": request.context}
    set_fields = {name: value for name, value in (own | passed).items() if value not in (None, [], {})}
    return RunRequest.model_validate(set_fields)


def _limits_for_child(state: RunState) -> Limits | None:
    """Return a team's bounds of each single run. What the runs share is leased."""
    # An agent's child has limits of its own spec; the lease bounds what it shares with its parent.
    if state.counts_steps:
        return None
    each = {"steps": state.limits.steps, "identical_calls": state.limits.identical_calls}
    set_bounds = {name: bound for name, bound in each.items() if bound is not None}
    return Limits.model_validate(set_bounds) if set_bounds else None


@dataclass(frozen=True, kw_only=True)
class PlaceBelow:
    """Part of a child's lineage that Temporal knows, and not the state."""

    parent_execution_id: str
    identity: str
    earlier_attempts: int = 0


def _place_below(state: RunState, start: Start) -> PlaceBelow:
    return PlaceBelow(
        parent_execution_id=workflow.info().first_execution_run_id,
        identity=identity_below(state, start),
        earlier_attempts=earlier_attempts(state) + start.earlier_attempts,
    )


def input_for(state: RunState, start: Start, now: datetime, place: PlaceBelow) -> ChildInput:
    """Return the input of a child: its lineage, its lease and its deadline."""
    assert start.member is not None, "only functions have none"
    child, above = state.tree.child(start.key), state.tree.lineage
    members = ResolvedAgent(spec=state.spec, members=state.members)
    resolved = for_member(members, start.member)
    lineage = Lineage(
        parent=state.id,
        parent_execution_id=place.parent_execution_id,
        key=start.key,
        path=[*state.tree.path, start.key],
        spec_digest=resolved.spec.full_digest if resolved else "",
        as_of=above.as_of if above else state.started_at,
        identity=place.identity,
        earlier_attempts=place.earlier_attempts,
    )
    # An absolute time, because the child may start late: its queue must not lengthen the deadline.
    own = None if start.timeout is None else now + start.timeout
    stands = node_clock_stands(state.spec)
    counted = None if stands else own
    deadline = min((at for at in (counted, state.deadline_at) if at is not None), default=None)
    return ChildInput(
        lineage=lineage,
        lease=Lease(
            lender=state.id,
            amount=lease_below(state, child),
            per_tool_ends=state.limits.per_tool_ends or state.tree.lease.per_tool_ends,
        ),
        deadline_at=deadline,
        deadline_reason="node_timeout" if counted and deadline == counted else _reason_above(state),
        clock_at=own if stands else None,
        grace=state.tree.grace,
        peers=list(start.peers),
        history=list(start.history),
        remembers=earlier_run(state, start),
        extension=extension_for(state, start.key, child_run_id(state.id, start.key)),
        unread=list(start.handed_on.messages) if start.handed_on else [],
        reads_results=start.handed_on is not None and start.handed_on.spilled,
    )


def _reason_above(state: RunState) -> StopReason:
    """Return the reason that goes with the run's own deadline."""
    return state.tree.deadline_reason if state.tree.deadline_at == state.deadline_at else "deadline"


def summary_of(start: Start) -> str:
    """Return the line that the UI shows for a child."""
    words = start.prompt if isinstance(start.prompt, str) else f"{len(start.prompt)} parts"
    return f"{start.key}: {' '.join(words.split())[:150]}"


async def _keep_text(text: str, most: int) -> KeptText:
    try:
        kept = await workflow.execute_activity(
            KEEP_TEXT,
            KeepText(text=text, preview_bytes=most),
            result_type=RawValue,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=5, non_retryable_error_types=list(TOO_LARGE_TYPES)),
            summary="keep a long answer",
        )
        return read_payload(kept, KeptText)
    except (ActivityError, ValueError, asyncio.CancelledError):
        return _cut_text(text.encode(errors="replace"), most, "the rest could not be kept")


def _cut_text(data: bytes, most: int, reason: str) -> KeptText:
    return KeptText(shown=mark_cut(first_bytes(data, most), len(data), reason))


async def _function_outcome(team: TeamState, start: Start) -> RunResult:
    """Run a function of a graph, as an activity."""
    node_input = {
        "task": task_text(team.task),
        "inputs": start.inputs,
        "prompt": start.prompt,
        "node": start.node,
        "visit": start.visit,
        "idempotency_key": function_key(team, start),
        "user": team.request.user,
        "context": dict(team.request.context),
    }
    try:
        begin = partial(
            workflow.start_activity,
            CALL_NODE,
            NodeCall(
                graph=team.spec.name,
                node=start.node,
                key=start.key,
                input=node_input,
                earlier_attempts=earlier_attempts(team) + start.earlier_attempts,
            ),
            result_type=RawValue,
            start_to_close_timeout=start.timeout or _FUNCTION_TIMEOUT,
            schedule_to_close_timeout=start.timeout,  # of the visit, its retries included
            heartbeat_timeout=_FUNCTION_HEARTBEAT,
            retry_policy=RetryPolicy(
                # The activity counts the failures itself.
                maximum_attempts=most_attempts(FUNCTION_ATTEMPTS),
                non_retryable_error_types=list(TOO_LARGE_TYPES),
            ),
            summary=f"{start.node}()",
        )
        output = read_json(await SoughtActivity(begin, most_attempts(FUNCTION_ATTEMPTS)).result())
    except (ActivityError, ValueError, asyncio.CancelledError) as error:
        return _function_failed(start, error)
    return RunResult(agent=start.node, output=output, stop_reason="end_turn", cost_microusd=0)


def _function_failed(start: Start, error: BaseException) -> RunResult:
    cause = error.cause if isinstance(error, ActivityError) else error
    left = [function_under_way(start.node)]
    if is_cancelled_exception(error):
        return RunResult(agent=start.node, stop_reason="cancelled", cost_microusd=0, missing=left)
    if isinstance(cause, TimeoutError) and start.timeout is not None:
        return RunResult(agent=start.node, stop_reason="node_timeout", cost_microusd=0, missing=left)
    kind = (cause.type if isinstance(cause, ApplicationError) else None) or "function"
    message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
    if isinstance(cause, TimeoutError) or kind == WORKER_SHUTDOWN:
        message = join_sentences(message, MAY_HAVE_TAKEN_EFFECT)
    failure = Failure(kind=kind, message=truncate_middle(mask_secrets(message)))
    return RunResult(agent=start.node, stop_reason="error", error=failure, cost_microusd=0)


def task_text(prompt: Any) -> str:
    """Return the text of a prompt."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(part.text for part in prompt if isinstance(part, Text))
