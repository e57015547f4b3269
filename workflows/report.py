"""What a run says of itself: status, result, details for the UI. Pure."""

from perdure.messages import Text, ToolCall
from perdure.wire import Approval, CallStatus, Question, RunResult, RunStatus, Status

from .calls import approval_digest
from .state import Call, End, State

_WORDS: dict[Status, str] = {
    "thinking": "waiting for the model",
    "acting": "calling tools",
    "waiting_approval": "waiting for a person to approve",
    "waiting_person": "waiting for a person to answer",
    "paused": "paused: resume it to go on",
    "parked": "parked: mend the cause, then resume it, or stop it",
    "stopping": "stopping: calling back what is in flight",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}


def status_of(state: State) -> Status:
    """The run's status, one of the closed set."""
    if state.end is not None:
        return _ended(state.end)
    if state.ending is not None:
        return "stopping"
    if state.parked is not None:
        return "parked"
    if state.paused:
        return "paused"
    return _working(state)


def _ended(end: End) -> Status:
    if end.failure is not None:
        return "failed"
    return "cancelled" if end.stop_reason == "cancelled" else "completed"


def _working(state: State) -> Status:
    held = [call.kind for call in state.calls if call.state == "asking"]
    if held:
        return "waiting_person" if all(kind == "person" for kind in held) else "waiting_approval"
    return "acting" if state.calls else "thinking"


def cost_of(state: State) -> int | None:
    """What the run has cost so far; None when it used a model whose price is not known."""
    return None if state.cost_unknown else state.cost_microusd


def result_of(state: State, end: End) -> RunResult:
    """The run's result."""
    return RunResult(
        agent=state.spec.name,
        output=end.output,
        stop_reason=end.stop_reason,
        steps=state.step,
        tool_calls=state.tool_calls,
        usage=state.usage,
        cost_microusd=cost_of(state),
        spec_hash=state.spec.hash,
        error=end.failure,
    )


def status_report(state: State) -> RunStatus:
    """Where the run is, whole."""
    status = status_of(state)
    return RunStatus(
        agent=state.spec.name,
        status=status,
        doing=doing(state, status),
        step=state.step,
        tool_calls=state.tool_calls,
        messages=len(state.messages),
        usage=state.usage,
        cost_microusd=cost_of(state),
        waiting=[waiting_for(call) for call in state.calls if call.state == "asking"],
        calls=[_call_status(call) for call in state.calls],
        failure=state.parked or (state.end.failure if state.end else None),
        stop_reason=state.end.stop_reason if state.end else None,
        spec_hash=state.spec.hash,
        model=state.spec.models[state.model].config.name,
        queued=len(state.inbox),
    )


def starting_report(agent: str, status: Status) -> RunStatus:
    """Where a run is whose agent no worker has resolved yet, or never will."""
    doing = "starting" if status == "thinking" else f"{status} before it began"
    return RunStatus(agent=agent, status=status, doing=doing)


def doing(state: State, status: Status) -> str:
    """What the run does or waits for, in one line for people."""
    words = _WORDS[status]
    if status == "parked" and state.parked is not None:
        return f"{words} ({state.parked.kind}: {state.parked.message})"
    if status == "failed" and state.end is not None and state.end.failure is not None:
        return f"{words} ({state.end.failure.kind}: {state.end.failure.message})"
    if status == "completed" and state.end is not None:
        return f"{words} ({state.end.stop_reason})"
    shown = [signature(call.call) for call in state.calls if call.state != "done"]
    return f"{words}: {', '.join(shown)}" if shown else words


def waiting_for(call: Call) -> Approval | Question:
    """What a held call wants of a person."""
    asked = call.call
    if call.kind == "person":
        return Question(call_id=asked.id, text=str(asked.arguments.get("question", "")), since=call.since)
    return Approval(
        call_id=asked.id,
        tool=asked.name,
        arguments=asked.arguments,
        digest=approval_digest(asked),
        since=call.since,
    )


def _call_status(call: Call) -> CallStatus:
    result = call.result
    said = "" if result is None else "".join(p.text for p in result.content if isinstance(p, Text))
    return CallStatus(
        call_id=call.call.id,
        tool=call.call.name,
        arguments=call.call.arguments,
        state="waiting" if call.state == "asking" else call.state,
        is_error=result.is_error if result else False,
        summary=_short(said, 200),
    )


def signature(call: ToolCall, most: int = 100) -> str:
    """`search(query="...")`, in at most so many characters."""
    arguments = ", ".join(f"{name}={_plain(value)}" for name, value in call.arguments.items())
    return _short(f"{call.name}({arguments})", most)


def _plain(value: object) -> str:
    """On one line, whatever is in it: a person decides by what this shows."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return " ".join(text.split())


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def dollars(microusd: int | None) -> str:
    """An amount for people; says so when it is not known."""
    return "cost unknown" if microusd is None else f"${microusd / 1_000_000:.4f}"


def details(state: State) -> str:
    """The run's page in the Temporal UI: Markdown, newest state only, no history."""
    status = status_of(state)
    spent = f"{state.usage.total_tokens} tokens, {dollars(cost_of(state))}"
    model = state.spec.models[state.model].config.name
    lines = [
        f"**{status}** · {doing(state, status)}",
        "",
        f"- step {state.step}, {state.tool_calls} tool calls, {spent}",
        f"- agent `{state.spec.name}`, model `{model}`, spec `{state.spec.hash[:12]}`",
    ]
    for call in state.calls:
        if call.state == "asking":
            lines.append(f"- **waits for a person**: `{call.call.id}` {_literal(signature(call.call, 300))}")
            lines.append(f"  - {_how_to(call)}")
    return "\n".join(lines)


def _literal(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _how_to(call: Call) -> str:
    if call.kind == "person":
        return "answer with the update `send`, a JSON string"
    return (
        'decide with the update `decide`: `{"call_id": "' + call.call.id + '", "allow": true, "by": "you"}`'
    )
