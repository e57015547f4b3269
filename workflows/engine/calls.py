"""The tool calls of a step: which may run, which a person decides, which go straight back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from perdure.errors import rule_for
from perdure.fallbacks import ToolFallback
from perdure.messages import Text, ToolCall, ToolResult
from perdure.model import digest
from perdure.planning import plan_of, plan_receipt
from perdure.policy import Verdict
from perdure.wire.names import HANDOFF, READ_RESULT, UPDATE_PLAN
from perdure.wire.results import PlanItem, StopReason
from perdure.wire.spec import ToolSpec
from perdure.wire.tree import Handoff, Peer

from .amounts import bounds_of, least, minus
from .state import Call, State
from .tree import held


@dataclass(kw_only=True)
class Opened:
    """A step's calls, and the counters after them."""

    calls: list[Call] = field(default_factory=list[Call])
    tool_calls: int
    per_tool: dict[str, int]
    wrap_up: StopReason | None
    handoff: Handoff | None = None
    plan: tuple[PlanItem, ...] | None = None
    unpaid: int = 0


def open_calls(state: State, asked: Sequence[ToolCall], now: datetime) -> Opened:
    """Sort the calls. Each gets a state; those that cannot run get their error result at once."""
    opened = Opened(tool_calls=state.tool_calls, per_tool=dict(state.per_tool), wrap_up=state.wrap_up)
    several = sum(call.name == HANDOFF for call in asked) > 1
    for call in asked:
        if call.problem is None and call.name == HANDOFF and state.peers:
            opened.calls.append(_handoff(state, call, now, opened, several=several))
        elif call.problem is None and call.name == UPDATE_PLAN and state.spec.planning:
            opened.calls.append(_plan(call, now, opened))
        else:
            opened.calls.append(_counted(state, call, now, opened))
    return opened


def _counted(state: State, call: ToolCall, now: datetime, opened: Opened) -> Call:
    over = _over(state, call.name, opened)
    if over is not None:
        opened.wrap_up = "max_tool_calls"
        return _refused(call, over, now)
    opened.per_tool[call.name] = opened.per_tool.get(call.name, 0) + 1
    if not _paid(state, opened):
        opened.unpaid += 1
        return Call(call=call, kind="function", state="unpaid", since=now)
    opened.tool_calls += 1
    return _sorted(state, call, now)


def _over(state: State, name: str, opened: Opened) -> str | None:
    limit = state.limits.tool_calls
    if limit is not None and opened.tool_calls + opened.unpaid >= limit:
        return f"not run: all {limit} tool calls of this run are used up"
    if _never(state, opened) and not _paid(state, opened):
        return "not run: all tool calls of the runs that this one belongs to are used up"
    bound = state.limits.per_tool.get(name)
    if bound is not None and opened.per_tool.get(name, 0) >= bound:
        return f"not run: all {bound} calls of {name!r} are used up"
    return None


def _paid(state: State, opened: Opened) -> bool:
    """Whether the run may make one more call without asking."""
    there = minus(least(bounds_of(state.limits), state.tree.lease), held(state.tree)).tool_calls
    return there is None or opened.tool_calls < there


def settled(state: State) -> State:
    """After the parent's answer: calls that are paid for now go on, the others wait, or never will."""
    opened = Opened(tool_calls=state.tool_calls, per_tool=dict(state.per_tool), wrap_up=state.wrap_up)
    calls: list[Call] = []
    for call in state.calls:
        if call.state != "unpaid":
            calls.append(call)
        elif _paid(state, opened):
            opened.tool_calls += 1
            calls.append(_sorted(state, call.call, call.since))
        elif _never(state, opened):
            opened.wrap_up = "max_tool_calls"
            why = "not run: all tool calls of the runs that this one belongs to are used up"
            calls.append(_refused(call.call, why, call.since))
        else:
            calls.append(call)
    return replace(state, calls=tuple(calls), tool_calls=opened.tool_calls, wrap_up=opened.wrap_up)


def _never(state: State, opened: Opened) -> bool:
    """Whether waiting is no use: nobody will give back, or give, what a call needs."""
    limit = state.limits.tool_calls
    spent_out = limit is not None and opened.tool_calls >= limit
    return spent_out or (state.tree.refused and not state.tree.children)


def _handoff(state: State, call: ToolCall, now: datetime, opened: Opened, *, several: bool) -> Call:
    """Hand over once this step's other calls are done; or say why not, so that nothing is lost."""
    name = str(call.arguments.get("agent_name", ""))
    peer = next((peer for peer in state.peers if peer.name == name), None)
    problem = _no_handoff(state, name, peer, several=several)
    if problem is not None:
        if peer is not None and peer.barred is not None and not several:
            opened.wrap_up = peer.barred
        return _refused(call, problem, now)
    opened.handoff = Handoff(
        agent_name=name,
        message=str(call.arguments.get("message", "")),
        context=dict(call.arguments.get("context") or {}),
    )
    return _answered(call, f"handed over to {name!r}", now)


def _no_handoff(state: State, name: str, peer: Peer | None, *, several: bool) -> str | None:
    if several:
        return "not handed over: hand over to one agent, once; decide which"
    if peer is None:
        known = ", ".join(repr(one.name) for one in state.peers)
        who = "yourself" if name == state.spec.name else f"{name!r}, who is not here"
        return f"not handed over: you cannot hand over to {who}; there are: {known}"
    if peer.barred is not None:
        return f"not handed over: no more ({peer.barred}); answer yourself with what you have"
    if state.inbox:
        return "not handed over: a message for you has come in meanwhile; read it first"
    return None


def _plan(call: ToolCall, now: datetime, opened: Opened) -> Call:
    try:
        opened.plan = plan_of(call.arguments)
    except ValueError as error:
        return _refused(call, f"the plan is as it was: {error}", now)
    return _answered(call, plan_receipt(opened.plan), now)


def _answered(call: ToolCall, text: str, now: datetime) -> Call:
    result = ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)])
    return Call(call=call, kind="function", state="done", since=now, result=result)


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


def fallen_back(state: State, call: Call, result: ToolResult) -> Call:
    """The call after its tool, or what stands in for it, has given this."""
    if call.stand_in is not None:
        return _done(call, _told(call, result))
    kind = result.error_kind or ""
    fallback = _fallback(state, call, kind) if result.is_error else None
    if fallback is None or not rule_for(kind).stands_in:
        return _done(call, result)
    if fallback.answer is not None:
        said = f"{fallback.answer}\n(This is a default answer: {call.call.name!r} failed: {result.text})"
        given = {"content": [Text(text=said)], "is_error": False, "stand_in": "answer"}
        return _done(call, result.model_copy(update=given))
    return replace(call, state="ready", stand_in=fallback.tool, failed=result.text)


def _fallback(state: State, call: Call, kind: str) -> ToolFallback | None:
    """What stands in for the call's tool, if it may: a policy may forbid the other tool."""
    tool = state.spec.tool(call.call.name)
    fallback = tool.fallback if tool else None
    if fallback is None or fallback.tool is None:
        return fallback if fallback and fallback.answer is not None else None
    if tool is not None and tool.effect == "write" and kind == "tool_timeout":
        return None  # it may have taken effect: another must not do it again
    other = state.spec.tool(fallback.tool)
    allowed = other is not None and verdict_on(state, other, call.call) == "allow"
    bound = state.limits.per_tool.get(fallback.tool)
    used_up = bound is not None and state.per_tool.get(fallback.tool, 0) >= bound
    return fallback if allowed and not used_up else None


def _told(call: Call, result: ToolResult) -> ToolResult:
    """The model must know who answered, and why."""
    why = f"{call.call.name!r} failed: {call.failed}"
    if result.is_error:
        said = Text(text=f"{why}\nIts stand-in {call.stand_in!r} failed too: {result.text}")
        return result.model_copy(update={"name": call.call.name, "content": [said]})
    note = Text(text=f"(Answered by {call.stand_in!r}, because {why})\n")
    given = {"name": call.call.name, "content": [note, *result.content], "stand_in": call.stand_in}
    return result.model_copy(update=given)


def _done(call: Call, result: ToolResult) -> Call:
    return replace(call, state="done", result=_marked(call, result))


def _marked(call: Call, result: ToolResult) -> ToolResult:
    """The model must know when a person changed what it asked for."""
    if not call.edited:
        return result
    note = Text(text=f"(A person changed the arguments to {call.call.arguments!r}.)\n")
    return result.model_copy(update={"content": [note, *result.content]})


def approval_digest(call: ToolCall) -> str:
    """What an approval is bound to."""
    return digest([call.name, call.arguments])
