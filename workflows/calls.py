"""The tool calls of a step: which may run, which a person decides, which go straight back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from perdure.effects import READ_RESULT
from perdure.messages import Text, ToolCall, ToolResult
from perdure.model import digest
from perdure.policy import Verdict
from perdure.spec import ToolSpec
from perdure.wire import StopReason

from .state import Call, State


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A step's calls, and the counters after them."""

    calls: tuple[Call, ...]
    tool_calls: int
    per_tool: dict[str, int]
    wrap_up: StopReason | None


def open_calls(state: State, asked: Sequence[ToolCall], now: datetime) -> Opened:
    """Sort the calls. Each gets a state; those that cannot run get their error result at once."""
    total, per_tool, wrap_up = state.tool_calls, dict(state.per_tool), state.wrap_up
    calls: list[Call] = []
    for call in asked:
        over = _over(state, call.name, total, per_tool)
        if over is not None:
            wrap_up = "max_tool_calls"
            calls.append(_refused(call, over, now))
            continue
        total += 1
        per_tool[call.name] = per_tool.get(call.name, 0) + 1
        calls.append(_sorted(state, call, now))
    return Opened(calls=tuple(calls), tool_calls=total, per_tool=per_tool, wrap_up=wrap_up)


def _over(state: State, name: str, total: int, per_tool: dict[str, int]) -> str | None:
    if state.limits.tool_calls is not None and total >= state.limits.tool_calls:
        return f"not run: all {state.limits.tool_calls} tool calls of this run are used up"
    bound = state.limits.per_tool.get(name)
    if bound is not None and per_tool.get(name, 0) >= bound:
        return f"not run: all {bound} calls of {name!r} are used up"
    return None


def _sorted(state: State, call: ToolCall, now: datetime) -> Call:
    if call.problem is not None:
        return _refused(call, call.problem, now)
    if call.name == READ_RESULT:
        return Call(call=call, kind="function", state="ready", since=now)
    tool = state.spec.tool(call.name)
    if tool is None:
        known = ", ".join(repr(t.name) for t in state.spec.tools) or "none"
        return _refused(call, f"there is no tool {call.name!r}; the tools are {known}", now)
    verdict = verdict_on(state, tool, call)
    if verdict == "deny":
        return _refused(call, f"the policy does not allow {call.name!r} here", now)
    held = verdict == "ask" or tool.kind == "person"
    return Call(call=call, kind=tool.kind, state="asking" if held else "ready", since=now)


def verdict_on(state: State, tool: ToolSpec, call: ToolCall) -> Verdict:
    """What policy and tool say of the call: the stricter of the two."""
    if state.spec.policy is None:
        return "ask" if tool.approval else "allow"
    verdict = state.spec.policy.verdict(tool.name, state.request.roles, _resource(tool, call))
    return "ask" if verdict == "allow" and tool.approval else verdict


def _resource(tool: ToolSpec, call: ToolCall) -> str | None:
    """What the call works on, as its function will see it: left out, that is the default."""
    if tool.resource is None:
        return None
    properties: dict[str, Any] = tool.input_schema.get("properties", {})
    default = properties.get(tool.resource, {}).get("default", "")
    value = call.arguments.get(tool.resource, default)
    whole = isinstance(value, float) and value.is_integer()  # JSON's 7.0 is the integer 7
    return str(int(value)) if whole else str(value)


def _refused(call: ToolCall, why: str, now: datetime) -> Call:
    result = ToolResult(call_id=call.id, name=call.name, content=[Text(text=why)], is_error=True)
    return Call(call=call, kind="function", state="done", since=now, result=result)


def with_result(calls: tuple[Call, ...], result: ToolResult) -> tuple[Call, ...]:
    """The calls, the one of that id done. A result that comes late or twice changes nothing."""
    return tuple(
        replace(call, state="done", result=_marked(call, result))
        if call.call.id == result.call_id and call.state != "done"
        else call
        for call in calls
    )


def _marked(call: Call, result: ToolResult) -> ToolResult:
    """The model must know when a person changed what it asked for."""
    if not call.edited:
        return result
    note = Text(text=f"(A person changed the arguments to {call.call.arguments!r}.)\n")
    return result.model_copy(update={"content": [note, *result.content]})


def approval_digest(call: ToolCall) -> str:
    """What an approval is bound to."""
    return digest([call.name, call.arguments])
