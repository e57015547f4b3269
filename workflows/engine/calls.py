"""Tool calls of a step: which may run, which wait for a person, which get their result at once.

Rules
1. Every call of the model's reply gets exactly one result, in the transcript's order. A call that cannot run
   gets an error result at once, in words for the model.
2. A call is checked in this order: limits, payment by the run's lender, arguments, tool, policy, hooks, approval.
   After hooks that changed the arguments, the policy judges them again.
   So a person is asked only about calls that could run.
3. A call that the run cannot pay yet is `unpaid`. It is checked again once the lender has answered.
4. Handoffs and updates of the plan run nothing: they get their result at once, and no limit counts them. Only
   hooks before a handoff, and a person whom they ask, delay its result.
5. A final answer beside other calls is not accepted yet: they are carried out, and the model answers anew, because it
   has not seen their results. An update of the plan alone does not delay the answer.
6. A result is final. A later one for the same call changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from perdure.errors import rule_for
from perdure.fallbacks import ToolFallback
from perdure.hooks import HookPoint
from perdure.messages import ResultPart, Text, ToolCall, ToolResult
from perdure.model import canonical_json, digest
from perdure.planning import plan_of, plan_receipt
from perdure.policy import Verdict
from perdure.schema import canonical_arguments
from perdure.wire.effects import CheckedCall
from perdure.wire.names import FINAL_ANSWER, HANDOFF, READ_BACK, READ_RESULT, UPDATE_PLAN
from perdure.wire.results import PlanItem, StopReason
from perdure.wire.spec import ToolKind, ToolSpec
from perdure.wire.tree import Amount, Handoff, Peer

from .amounts import bounds_of, least, minus
from .read_on import offers_read_back, read_back, rest_of_result
from .refusals import CallsMade, Refusal, count_identical, hopeless_refusal, refusal_of, shortfall
from .state import AgentState, Call, Ledger
from .tree import held_by_children

_ANSWER_AND_HANDOFF = "not handed over: a final answer stands in the same reply; decide which of the two"
_KEY_CHARS = 16
"""Length of the digest by which identical calls are told: a collision would only refuse a call too early."""

NOT_ACCEPTED_YET = (
    "not accepted yet: the other calls of this reply were carried out first; read their results, "
    "then give the final answer again"
)


@dataclass(kw_only=True)
class OpenedStep:
    """Calls of a step while they are sorted, and the counters after them."""

    calls: list[Call] = field(default_factory=list[Call])
    tool_calls: int
    per_tool: dict[str, int]
    wrap_up: StopReason | None
    handoff: Handoff | None = None
    plan: tuple[PlanItem, ...] | None = None
    unpaid: list[str] = field(default_factory=list[str])
    """Tools of the calls that wait for the lender."""
    identical: dict[str, int]
    """Identical calls, by their digest."""
    refused: dict[str, int]
    """Calls that a limit has refused, by tool."""


def open_calls(state: AgentState, requested: Sequence[ToolCall], now: datetime) -> OpenedStep:
    """Give each call its state. Calls that cannot run get their error result at once."""
    opened = _counters(state)
    # Two handoffs in a step name two successors: neither happens.
    several = sum(call.name == HANDOFF for call in requested) > 1
    has_answer = state.step.kept_output is not None
    for call in requested:
        if has_answer and is_answer(call):
            opened.calls.append(_error_call(call, NOT_ACCEPTED_YET, now))
        elif call.problem is None and call.name == HANDOFF and state.peers:
            opened.calls.append(
                _error_call(call, _ANSWER_AND_HANDOFF, now)
                if has_answer
                else _open_handoff(state, call, now, opened, several=several)
            )
        elif _is_plan(state, call):
            opened.calls.append(_update_plan(call, now, opened))
        else:
            opened.calls.append(_open_call(state, call, now, opened))
    return opened


def is_answer(call: ToolCall) -> bool:
    """Return whether the call gives a final answer that fits its type."""
    return call.name == FINAL_ANSWER and call.problem is None


def _is_plan(state: AgentState, call: ToolCall) -> bool:
    return call.problem is None and call.name == UPDATE_PLAN and state.spec.planning


def needs_another_reply(state: AgentState, calls: Sequence[ToolCall]) -> bool:
    """Return whether the calls beside a final answer have results that the model must see before it ends."""
    return any(not is_answer(call) and not _is_plan(state, call) for call in calls)


def close_calls(state: AgentState, requested: Sequence[ToolCall], now: datetime, why: str) -> OpenedStep:
    """Give each call of a run's last reply its result: the answer its receipt, other calls the reason."""
    opened = _counters(state)
    answer = next((call for call in requested if is_answer(call)), None)
    for call in requested:
        if is_answer(call):
            # A model may repeat its answer. Another one beside it was not taken, and must not look so.
            is_same = answer is not None and call.arguments == answer.arguments
            opened.calls.append(
                _done_call(call, "accepted: this is the final answer", now)
                if is_same
                else _error_call(call, "not taken: the first final answer of the reply counts", now)
            )
        elif _is_plan(state, call):
            opened.calls.append(_update_plan(call, now, opened))
        else:
            opened.calls.append(_error_call(call, f"not run: {why}", now))
    return opened


def _counters(state: AgentState) -> OpenedStep:
    ledger = state.ledger
    return OpenedStep(
        tool_calls=ledger.tool_calls,
        per_tool=dict(ledger.per_tool),
        wrap_up=state.step.wrap_up,
        identical=dict(state.step.identical),
        refused=dict(ledger.refused),
    )


def _open_call(state: AgentState, call: ToolCall, now: datetime, opened: OpenedStep) -> Call:
    key = _identical_key(state, call)
    refusal = refusal_of(state, call, _calls_made(opened), opened.identical.get(key, 0))
    if refusal is not None:
        return _refuse(opened, call, refusal, now)
    if key:
        count_identical(opened.identical, key)
    if not _is_paid(state, opened, call.name):
        opened.unpaid.append(call.name)
        # The kind is a placeholder: the tool is looked up once the call is paid.
        return Call(call=call, kind="function", state="unpaid", since=now)
    _pay(opened, call.name)
    return _check_call(state, call, now)


def _identical_key(state: AgentState, call: ToolCall) -> str:
    """Return the digest under which the call is counted, or an empty text when it is not."""
    tool = state.spec.tool(call.name)
    if state.limits.identical_calls is None or call.problem is not None or (tool and tool.polls):
        return ""
    return call_digest(call)[:_KEY_CHARS]


def _calls_made(opened: OpenedStep) -> CallsMade:
    return CallsMade(tool_calls=opened.tool_calls, per_tool=opened.per_tool, unpaid=opened.unpaid)


def _refuse(opened: OpenedStep, call: ToolCall, refusal: Refusal, now: datetime) -> Call:
    if refusal.ends:
        opened.wrap_up = "max_tool_calls"
    opened.refused[call.name] = opened.refused.get(call.name, 0) + 1
    return _error_call(call, refusal.words, now)


def _pay(opened: OpenedStep, name: str) -> None:
    opened.tool_calls += 1
    opened.per_tool[name] = opened.per_tool.get(name, 0) + 1


def _is_paid(state: AgentState, opened: OpenedStep, name: str) -> bool:
    """Return whether the run may make one more call of the tool without asking its lender."""
    return shortfall(state, name, _calls_made(opened)) is None


def admit_paid_calls(state: AgentState) -> AgentState:
    """Return the state after the lender's answer: paid calls go on, the rest waits or gets its error."""
    opened = _counters(state)
    calls: list[Call] = []
    for call in state.step.calls:
        if call.state != "unpaid":
            calls.append(call)
        elif _is_paid(state, opened, call.call.name):
            _pay(opened, call.call.name)
            calls.append(_check_call(state, call.call, call.since))
        elif (refusal := hopeless_refusal(state, call.call.name, _calls_made(opened))) is not None:
            calls.append(_refuse(opened, call.call, refusal, call.since))
        else:
            calls.append(call)
    return replace(
        state,
        step=replace(state.step, calls=tuple(calls), wrap_up=opened.wrap_up),
        ledger=ledger_after(state, opened),
    )


def ledger_after(state: AgentState, opened: OpenedStep) -> Ledger:
    """Return the ledger with the calls of a step."""
    return replace(
        state.ledger, tool_calls=opened.tool_calls, per_tool=opened.per_tool, refused=opened.refused
    )


def _open_handoff(
    state: AgentState, call: ToolCall, now: datetime, opened: OpenedStep, *, several: bool, check: bool = True
) -> Call:
    """Hand over once the step's other calls have results; refuse, in words, what would lose something."""
    name = str(call.arguments.get("agent_name", ""))
    peer = next((peer for peer in state.peers if peer.name == name), None)
    problem = _handoff_problem(state, name, peer, several=several)
    if problem is not None:
        if peer is not None and peer.barred is not None and not several:
            # The limit that bars the handoff is the swarm's. This run must answer now, with what it has.
            opened.wrap_up = peer.barred
        return _error_call(call, problem, now)
    if check and "before_tool" in state.spec.hooks:
        return Call(call=call, kind="function", state="unchecked", since=now)
    context: Any = call.arguments.get("context")
    opened.handoff = Handoff(
        agent_name=name,
        message=str(call.arguments.get("message", "")),
        # A hook or a person may have set something else.
        context=cast("dict[str, Any]", context) if isinstance(context, dict) else {},
    )
    return _done_call(call, f"handed over to {name!r}", now)


def _handoff_problem(state: AgentState, name: str, peer: Peer | None, *, several: bool) -> str | None:
    if several:
        return "not handed over: hand over to one agent, once; decide which"
    if peer is None:
        known = ", ".join(repr(candidate.name) for candidate in state.peers)
        who = "yourself" if name == state.spec.name else f"{name!r}, who is not here"
        return f"not handed over: you cannot hand over to {who}; there are: {known}"
    if peer.barred is not None:
        return f"not handed over: no more ({peer.barred}); answer yourself with what you have"
    if state.inbox.messages:
        # The handoff ends this run, and the message with it.
        return "not handed over: a message for you has come in meanwhile; read it first"
    return None


def _update_plan(call: ToolCall, now: datetime, opened: OpenedStep) -> Call:
    try:
        opened.plan = plan_of(call.arguments)
    except ValueError as error:
        return _error_call(call, f"the plan is as it was: {error}", now)
    return _done_call(call, plan_receipt(opened.plan), now)


def _done_call(call: ToolCall, text: str, now: datetime) -> Call:
    result = ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)])
    return Call(call=call, kind="function", state="done", since=now, result=result)


def _check_call(state: AgentState, call: ToolCall, now: datetime) -> Call:
    """Apply the checks that need no I/O: arguments, tool, policy, approval."""
    if call.problem is not None:
        return _error_call(call, call.problem, now)
    # It reads on in a result of this run, so neither policy nor approval applies.
    if call.name == READ_RESULT:
        rest = rest_of_result(state, call)
        if rest is not None:
            return _done_call(call, rest, now)
        return Call(call=call, kind="function", state="ready", since=now)
    if call.name == READ_BACK and offers_read_back(state):
        return _done_call(call, read_back(state, call), now)
    tool = state.spec.tool(call.name)
    if tool is None:
        known = ", ".join(repr(t.name) for t in state.spec.tools) or "none"
        return _error_call(call, f"there is no tool {call.name!r}; the tools are {known}", now)
    verdict = verdict_on(state, tool, call)
    if verdict == "deny":
        return _error_call(call, f"the policy does not allow {call.name!r} here", now)
    if asks_hooks(state, tool.kind) or _asks_hooks_first(state, tool, verdict):
        return Call(call=call, kind=tool.kind, state="unchecked", since=now)
    asks = verdict == "ask" or tool.kind == "person"
    return Call(call=call, kind=tool.kind, state="asking" if asks else "ready", since=now)


def _asks_hooks_first(state: AgentState, tool: ToolSpec, verdict: Verdict) -> bool:
    """Return whether the hooks of a call that `call_tool` makes must be asked before that activity.

    A hook may change the arguments. A person must see, and the policy must judge, the arguments that will run.
    """
    judged = verdict == "ask" or (state.spec.policy is not None and tool.resource is not None)
    return tool.kind in ("function", "mcp") and judged and "before_tool" in state.spec.hooks


def asks_hooks(state: AgentState, kind: ToolKind, point: HookPoint = "before_tool") -> bool:
    """Return whether `run_hooks` asks the hooks, because no activity of Perdure makes the call.

    See `_asks_hooks_first` for the functions that it asks about too.
    """
    return kind in ("remote", "agent") and point in state.spec.hooks


def apply_check(state: AgentState, call: Call, checked: CheckedCall) -> Call:
    """Return a call after the hooks before it: ready, waiting for a person, or done with an error."""
    tool = state.spec.tool(call.stand_in or call.call.name)
    if checked.arguments is not None:
        call = replace(call, call=with_arguments(tool, call.call, dict(checked.arguments)))
    call = replace(call, checked=True, records=(*call.records, *checked.records))
    if checked.deny is not None or checked.end_turn is not None:
        return _finish(call, _denied_result(call, checked.deny or "not run: the turn was ended"))
    verdict: Verdict = "allow"
    if tool is not None:
        verdict = verdict_on(state, tool, with_arguments(tool, call.call, call.call.arguments))
    if verdict == "deny":
        name = call.stand_in or call.call.name
        return _finish(call, _denied_result(call, f"the policy does not allow {name!r} here"))
    if checked.ask is not None or verdict == "ask":
        return replace(call, state="asking", ask_reason=checked.ask or "")
    return replace(call, state="ready")


def apply_review(call: Call, checked: CheckedCall) -> Call:
    """Return a call after the hooks after it: done, with the result that they let through."""
    result = call.unreviewed
    assert result is not None, "a call is reviewed with its result"
    if checked.text is not None:
        result = result.model_copy(update={"content": [Text(text=checked.text)], "spilled": None})
    if checked.deny is not None:
        withheld = {"content": [Text(text=checked.deny)], "is_error": True, "spilled": None}
        result = result.model_copy(update=withheld)
    # The records of the hooks before the call, and the note on an edit, stand in the result since it came.
    result = result.model_copy(update={"hooks": [*result.hooks, *checked.records]})
    return replace(call, state="done", unreviewed=None, result=result)


def open_checked_handoff(state: AgentState, call: Call) -> tuple[Call, Handoff | None]:
    """Return a handoff after its hooks: done, and the handoff that takes effect with the step."""
    opened = _counters(state)
    done = _open_handoff(state, call.call, call.since, opened, several=False, check=False)
    assert done.result is not None, "a handoff gets its result at once"
    return _finish(replace(call, state="done"), done.result), opened.handoff


def verdict_on(state: AgentState, tool: ToolSpec, call: ToolCall) -> Verdict:
    """Return the stricter verdict of the policy and the tool's own approval rule."""
    if state.spec.policy is None:
        return "ask" if tool.approval else "allow"
    policy, roles = state.spec.policy, state.request.roles
    verdicts = [policy.verdict(tool.name, roles, resource) for resource in resources_of(tool, call)]
    if tool.approval:
        verdicts.append("ask")
    strictest: tuple[Verdict, ...] = ("deny", "ask", "allow")
    return next(verdict for verdict in strictest if verdict in verdicts)


def resources_of(tool: ToolSpec, call: ToolCall) -> list[str | None]:
    """Return the resources that the call works on, from its canonical arguments: each item of a list is one."""
    if tool.resource is None:
        return [None]
    found: list[str | None] = []
    values: list[Any] = [call.arguments.get(tool.resource, "")]
    while values:
        value = values.pop(0)
        if isinstance(value, list):
            values = [*value, *values]
        else:
            # The order of an object's fields is the model's, so they are sorted.
            found.append(canonical_json(value).decode() if isinstance(value, dict) else str(value))
    return found or [""]


def with_arguments(tool: ToolSpec | None, call: ToolCall, arguments: dict[str, Any]) -> ToolCall:
    """Return the call with other arguments, in the form that the tool reads."""
    if tool is not None:
        arguments = canonical_arguments(arguments, tool.input_schema, tool.resource, defaults=True)
    return call.model_copy(update={"arguments": arguments})


def _error_call(call: ToolCall, message: str, now: datetime) -> Call:
    return Call(call=call, kind="function", state="done", since=now, result=_error_result(call, message))


def _error_result(call: ToolCall, message: str) -> ToolResult:
    content: list[ResultPart] = [Text(text=message)]
    return ToolResult(call_id=call.id, name=call.name, content=content, is_error=True, not_run=True)


def _denied_result(call: Call, message: str) -> ToolResult:
    # Before a stand-in is denied, the call's own tool has run.
    return _error_result(call.call, message).model_copy(update={"not_run": call.stand_in is None})


def with_result(calls: tuple[Call, ...], result: ToolResult) -> tuple[Call, ...]:
    """Return the calls with this result. A result that comes late or twice changes nothing."""
    return tuple(
        replace(call, state="done", result=_note_edit(call, result))
        if call.call.id == result.call_id and call.state != "done"
        else call
        for call in calls
    )


def apply_result(state: AgentState, call: Call, result: ToolResult) -> Call:
    """Return the call after a result of its tool or stand-in: done, or ready for the stand-in."""
    # The result of a stand-in is final, an error too: there is no stand-in of a stand-in.
    if call.stand_in is not None:
        return _finish(call, _stand_in_result(call, result))
    kind = result.error_kind or ""
    fallback = _fallback(state, call, result) if result.is_error else None
    # Wrong arguments, for example, are for the model to correct; a stand-in would get them as well.
    if fallback is None or not rule_for(kind).stands_in:
        return _finish(call, result)
    if fallback.answer is not None:
        text = f"{fallback.answer}\n(This is a default answer: {call.call.name!r} failed: {result.text})"
        changes = {"content": [Text(text=text)], "is_error": False, "stand_in": "answer"}
        return _finish(call, result.model_copy(update=changes))
    stand_in = state.spec.tool(fallback.tool) if fallback.tool else None
    unchecked = stand_in is not None and (
        asks_hooks(state, stand_in.kind) or _asks_hooks_first(state, stand_in, "allow")
    )
    # The hooks have seen the failed tool's call, not the stand-in's: they are asked about this one too.
    return replace(
        call,
        state="unchecked" if unchecked else "ready",
        stand_in=fallback.tool,
        failed=result.text,
        checked=False,
        records=(*call.records, *result.hooks),
    )


def _fallback(state: AgentState, call: Call, result: ToolResult) -> ToolFallback | None:
    """Return the stand-in for the call's tool, if policy and limits let it answer."""
    tool, kind = state.spec.tool(call.call.name), result.error_kind
    fallback = tool.fallback if tool else None
    if fallback is None or fallback.tool is None:
        return fallback if fallback and fallback.answer is not None else None
    if result.may_have_effect or (tool is not None and tool.effect == "write" and kind == "tool_timeout"):
        return None  # a stand-in must not repeat it
    stand_in = state.spec.tool(fallback.tool)
    if stand_in is None:
        return None
    # The stand-in may name another parameter as its resource, with a default of its own.
    as_stand_in = with_arguments(stand_in, call.call, call.call.arguments)
    allowed = verdict_on(state, stand_in, as_stand_in) == "allow"
    # It is no further call of the model, so only the bound of its own tool counts.
    own = least(bounds_of(state.limits), state.tree.lease.amount)
    made = Amount(per_tool=state.ledger.per_tool)
    available = minus(own, held_by_children(state.tree), made)
    used_up = available.per_tool.get(fallback.tool) == 0
    return fallback if allowed and not used_up else None


def _stand_in_result(call: Call, result: ToolResult) -> ToolResult:
    """Say in the result which tool answered, and why: the model must know."""
    cause = f"{call.call.name!r} failed: {call.failed}"
    if result.is_error:
        text = Text(text=f"{cause}\nIts stand-in {call.stand_in!r} failed too: {result.text}")
        return result.model_copy(update={"name": call.call.name, "content": [text]})
    note = Text(text=f"(Answered by {call.stand_in!r}, because {cause})")
    changes = {"name": call.call.name, "content": [note, *result.content], "stand_in": call.stand_in}
    return result.model_copy(update=changes)


def _finish(call: Call, result: ToolResult) -> Call:
    return replace(call, state="done", result=_note_edit(call, result))


def _note_edit(call: Call, result: ToolResult) -> ToolResult:
    """Say in the result what people and hooks have decided and changed: the model, and the record, must know."""
    if call.records:
        result = result.model_copy(update={"hooks": [*call.records, *result.hooks]})
    if call.approval is not None:
        result = result.model_copy(update={"approval": call.approval})
    if not call.edited:
        return result
    note = Text(text=f"(A person changed the arguments to {call.call.arguments!r}.)")
    return result.model_copy(update={"content": [note, *result.content]})


def call_digest(call: ToolCall) -> str:
    """Return the digest of tool and arguments."""
    return digest([call.name, call.arguments])
