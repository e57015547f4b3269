"""Reports of an agent's run: status, result, page in the Temporal UI."""

from typing import Final, Literal

from perdure.messages import Text
from perdure.planning import plan_checklist
from perdure.shown import call_text
from perdure.wire.results import CallStatus, Failure, NodeStatus, RunResult, RunStatus, Status
from perdure.wire.spec import NodeKind

from .account import bounded_calls
from .approvals import tool_of
from .handovers import handed_on_by
from .leftovers import left_undone
from .report import (
    MOST_SHOWN,
    STATUS_WORDS,
    cost_of,
    end_words,
    extension_lines,
    failure_shown,
    how_to_answer,
    literal,
    people_below,
    shorten,
    signature,
    spent_words,
    status_of,
    turn_words,
    waiting_of,
)
from .state import AgentState, Call, CallState, End
from .tree import Child, waiting_below

_SHOWN: Final[dict[CallState, Literal["ready", "waiting", "running", "done"]]] = {
    # The wire has four states. Why a call is not running yet concerns the engine alone.
    "unpaid": "ready",
    "unchecked": "ready",
    "checking": "ready",
    "unreviewed": "running",
    "reviewing": "running",
    "ready": "ready",
    "asking": "waiting",
    "running": "running",
    "done": "done",
}


def agent_status(state: AgentState) -> RunStatus:
    """Return the status of an agent's run."""
    status = status_of(state)
    return RunStatus(
        agent=state.spec.name,
        status=status,
        doing=_doing(state, status),
        step=state.ledger.steps,
        tool_calls=state.ledger.tool_calls,
        messages=len(state.messages),
        usage=state.ledger.usage,
        cost_microusd=cost_of(state),
        waiting=waiting_of(state),
        nodes=[_child_status(state, child) for child in state.tree.children],
        plan=list(state.transcript.plan),
        extensions=list(state.past.extensions),
        calls=[_call_status(call) for call in state.step.calls],
        failure=failure_shown(state),
        stop_reason=state.end.stop_reason if state.end else None,
        spec_hash=state.spec.hash,
        model=state.spec.models[state.chain.model].config.name,
        queued=state.unread_count,
        kind="session" if state.session else "agent",
        turn=state.session.turn if state.session else 0,
    )


def agent_result(state: AgentState, end: End) -> RunResult:
    """Return the result of an agent's run."""
    return RunResult(
        agent=state.spec.name,
        output=end.output,
        stop_reason=end.stop_reason,
        steps=state.ledger.steps,
        tool_calls=state.ledger.tool_calls,
        usage=state.ledger.usage,
        cost_microusd=cost_of(state),
        spec_hash=state.spec.hash,
        error=end.failure,
        missing=left_undone(state, end),
        handed_on=handed_on_by(state, end),
        per_tool=bounded_calls(state),
        refused_calls=dict(state.ledger.refused),
        answered=end.answers,
    )


def agent_details(state: AgentState) -> str:
    """Return the run's page in the Temporal UI: Markdown, newest state only, no history."""
    status = status_of(state)
    model = state.spec.models[state.chain.model].config.name
    ledger = state.ledger
    counts = f"step {ledger.steps}, {ledger.tool_calls} tool calls, {spent_words(state)}"
    # Rewritten after each change and read by people in the UI, so it stays short.
    lines = [
        f"**{status}** · {_doing(state, status)}",
        "",
        f"- {turn_words(state)}{counts}",
        f"- agent `{state.spec.name}`, model `{model}`, spec `{state.spec.hash[:12]}`",
    ]
    for call in state.step.calls:
        if call.state == "asking":
            text = call_text(tool_of(call), call.call.arguments, MOST_SHOWN)
            lines.append(f"- **waits for a person**: `{call.call.id}` {literal(text)}")
            lines.append(f"  - {how_to_answer(state, call)}")
    lines += people_below(state)
    lines += extension_lines(state)
    if state.tree.children:
        lines.append(f"- runs below: {', '.join(f'`{child.key}`' for child in state.tree.children)}")
    if state.transcript.plan:
        lines += ["", "**Plan**", "", plan_checklist(state.transcript.plan)]
    return "\n".join(lines)


def _doing(state: AgentState, status: Status) -> str:
    """Return what the run does or waits for, in one line for people."""
    words = STATUS_WORDS[status]
    if status == "parked" and state.parking.parked is not None:
        return _parked_words(words, state.parking.parked)
    ended = end_words(state, status)
    if ended is not None:
        return ended
    pending = [signature(call.call) for call in state.step.calls if call.state != "done"]
    named = pending or [waiting.path[0] for waiting in waiting_below(state.tree)]
    return f"{words}: {', '.join(named)}" if named else words


def _parked_words(words: str, failure: Failure) -> str:
    """Say why the run is parked, and whether a person must do something."""
    if failure.resumes_at is not None:
        words = f"parked: tries again at {failure.resumes_at:%H:%M:%S} UTC, or when it is resumed"
    return f"{words} ({failure.kind}: {failure.message})"


def _child_status(state: AgentState, child: Child) -> NodeStatus:
    # A redrive may have removed the member: its kind is unknown then.
    kinds: dict[str, NodeKind] = {member.name: member.kind for member in state.members}
    kind = kinds.get(child.name, "agent")
    return NodeStatus(key=child.key, node=child.name, kind=kind, run_id=child.run_id)


def _call_status(call: Call) -> CallStatus:
    result = call.result
    text = "" if result is None else "".join(p.text for p in result.content if isinstance(p, Text))
    return CallStatus(
        call_id=call.call.id,
        tool=call.call.name,
        arguments=call.call.arguments,
        state=_SHOWN[call.state],
        is_error=result.is_error if result else False,
        not_run=result.not_run if result else False,
        summary=shorten(text, 200),
    )
