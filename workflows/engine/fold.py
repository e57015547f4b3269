"""fold: what an event makes of a run's state. Pure and total; see the rules in `state`."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

from perdure.errors import rule_for
from perdure.limits import Limits
from perdure.messages import (
    Document,
    Image,
    Message,
    ResultPart,
    Text,
    ToolCall,
    ToolResult,
    Usage,
    estimate_tokens,
    estimated_tokens,
)
from perdure.model import canonical_json
from perdure.planning import PLAN_TOOL
from perdure.swarm import HANDOFF_TOOL
from perdure.wire.effects import ModelFailure
from perdure.wire.ids import child_key, child_run_id
from perdure.wire.names import FINAL_ANSWER
from perdure.wire.requests import ApprovalDecision, RunRequest
from perdure.wire.results import Failure, RunResult
from perdure.wire.spec import AgentSpec, AnySpec
from perdure.wire.tree import Branch

from . import tree
from .account import limits_of, spent
from .agent_calls import answer_of, receipt
from .budget import exhausted
from .calls import fallen_back, open_calls, settled, with_result
from .chain import back, following, taken
from .decide import early_end
from .state import (
    Asked,
    Call,
    CallReturned,
    CallsStarted,
    ChildAnswered,
    ChildEnded,
    ChildReported,
    Decided,
    End,
    EndAsked,
    Event,
    GraceOver,
    Granted,
    IdleNoticed,
    Interrupted,
    ModelFailed,
    NapOver,
    NodesStarted,
    Paused,
    Redriven,
    Replied,
    Resumed,
    Sent,
    Slid,
    Spoke,
    State,
    StepBegan,
    Switched,
    Told,
    TurnBegan,
    TurnEnded,
)
from .tree import Child, rooted
from .window import slide

MOST_STRIKES = 5
"""Steps in a row with nothing but calls that cannot be carried out: the model is not getting it."""
MOST_STALE = 5
MOST_HEARD = 256
"""Message ids that are remembered, against the same message coming twice."""
MOST_SHRINKS = 8
LONGEST_NAP: Final = timedelta(minutes=5)
"""Between two tries of a parked run, unless the provider itself asks for more."""
MOST_DOUBLINGS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Birth:
    """How a run came to be, beside what it was asked."""

    id: str = ""
    members: tuple[AnySpec, ...] = ()
    branch: Branch | None = None


def initial(request: RunRequest, spec: AgentSpec, now: datetime, birth: Birth | None = None) -> State:
    """The state of a run that has just been given its agent."""
    birth = birth or Birth()
    history = birth.branch.history if birth.branch else []
    return append(speechless(request, spec, now, birth), *history, Message.user(request.prompt))


def speechless(request: RunRequest, spec: AgentSpec, now: datetime, birth: Birth) -> State:
    """The same, before anything is said."""
    limits: Limits = spec.limits.tightened_by(request.limits)
    tools = [tool.definition.model_dump() for tool in spec.tools]
    if birth.branch is not None and birth.branch.peers:
        tools.append(HANDOFF_TOOL.model_dump())
    if spec.planning:
        tools.append(PLAN_TOOL.model_dump())
    fixed = canonical_json([spec.instructions, tools, spec.output_schema or ""])
    return State(
        request=request,
        spec=spec,
        limits=limits,
        started_at=now,
        deadline_at=deadline_of(limits, now, birth.branch),
        context_tokens=estimate_tokens(len(fixed)),
        id=birth.id,
        members=birth.members,
        tree=rooted(birth.branch),
    )


def deadline_of(limits: Limits, now: datetime, branch: Branch | None) -> datetime | None:
    """When the run must end: by its own limit, or by the one of those above it."""
    own = None if limits.timeout is None else now + limits.timeout
    above = branch.deadline_at if branch else None
    return min((at for at in (own, above) if at is not None), default=None)


def fold(state: State, event: Event) -> State:  # noqa: C901 - one case an event
    """The state after the event."""
    match event:
        case StepBegan():
            return _begin(state, event)
        case Replied():
            return _replied(state, event)
        case ModelFailed():
            return _model_failed(state, event)
        case CallsStarted():
            return _started(state, event)
        case CallReturned():
            return _close(_landed(state, event.result))
        case Sent():
            return _sent(state, event)
        case Decided():
            return _close(_decided(state, event.decision))
        case Paused():
            return replace(state, paused=True)
        case Resumed():
            return _told_to_go_on(state)
        case NapOver():
            return _awake(state, event.at)
        case Redriven():
            return _redriven(state, event)
        case EndAsked():
            return _end_asked(state, event)
        case GraceOver():
            return _give_up(state)
        case Slid():
            return _slid(state, event.start)
        case Switched():
            return taken(state, event.model)
        case ChildEnded():
            return _child_ended(state, event)
        case ChildReported():
            return _close(settled(replace(state, tree=tree.reported(state.tree, event.report))))
        case ChildAnswered():
            return replace(state, tree=tree.granted(state.tree, event.key, event.grant.amount))
        case Asked():
            return replace(state, tree=tree.asked(state.tree, event.need, event.wish))
        case Granted():
            return _close(settled(replace(state, tree=tree.answered(state.tree, event.grant))))
        case Told():
            return replace(state, tree=tree.told(state.tree, event.waiting, event.returned))
        case NodesStarted():
            return state  # an agent has none
        case Spoke() | TurnBegan() | TurnEnded() | Interrupted() | IdleNoticed():
            return state  # a session's: see `turns`
        case _:
            assert_never(event)


def append(state: State, *messages: Message) -> State:
    """With these messages at its end."""
    new_tokens = sum(estimated_tokens(message) for message in messages)
    return replace(
        state, messages=state.messages + messages, context_tokens=state.context_tokens + new_tokens
    )


def _begin(state: State, event: StepBegan) -> State:
    state = append(replace(state, inbox=()), *state.inbox)
    step = state.step if state.redo else state.step + 1
    return replace(state, step=step, redo=False, asking_model=True, clamped_by=event.clamped_by)


def _bill(state: State, usage: Usage, cost: int | None, wasted: Usage, wasted_cost: int) -> State:
    return replace(
        state,
        usage=state.usage + usage + wasted,
        cost_microusd=state.cost_microusd + (cost or 0) + wasted_cost,
        cost_unknown=state.cost_unknown or cost is None,
    )


def _replied(state: State, event: Replied) -> State:
    outcome = event.outcome
    meta = outcome.message.meta
    assert meta is not None, "the model activity always records how a reply came to be"
    state = _bill(state, meta.usage, meta.cost_microusd, outcome.wasted, outcome.wasted_microusd)
    state = replace(state, asking_model=False, stale=0)
    if outcome.stop == "context_overflow":
        return _overflowed(state) if state.ending is None else replace(state, redo=True)
    message = outcome.message.model_copy(
        update={"meta": meta.model_copy(update={"errors": list(state.tried)})} if state.tried else {}
    )
    state = replace(state, messages=(*state.messages, message), tried=(), shrinks=0)
    state = back(replace(state, naps=0, outage=None, force_once=False))
    # A reply that cost nothing (a cancelled one) says nothing about the context either.
    if meta.usage.total_tokens:
        state = replace(state, context_tokens=meta.usage.total_tokens)
    if state.ending is not None or outcome.stop == "cancelled":
        return _unanswered(state, message, "the run was ended")
    match outcome.stop:
        case "refusal" | "guardrail":
            said = message.text if state.spec.output_schema is None else None
            state = _unanswered(state, message, f"the model's answer was stopped ({outcome.stop})")
            return replace(state, end=End(stop_reason=outcome.stop, output=said))
        case "max_tokens":
            state = _unanswered(state, message, "the answer was cut by its length")
            return replace(state, end=early_end(state, state.clamped_by or "max_tokens"))
        case "pause_turn" if not message.tool_calls:
            return state
        case "end_turn" | "stop_sequence" | "tool_calls" | "pause_turn":
            return _answered(state, event, message)
        case _:
            assert_never(outcome.stop)


def _answered(state: State, event: Replied, message: Message) -> State:
    outcome = event.outcome
    if outcome.output is not None:
        state = _unanswered(state, message, "the final answer was given")
        return _final(state, outcome.output)
    if not message.tool_calls:
        return _words(state, message.text, outcome.output_problem)
    reason = state.wrap_up
    if reason is not None:
        state = _unanswered(state, message, reason)
        return replace(state, end=early_end(state, reason))
    return _close(_opened(state, message.tool_calls, event.at))


def _words(state: State, text: str, problem: str | None) -> State:
    """The model answered in words only."""
    if state.wrap_up is not None:
        said = text if state.spec.output_schema is None else None
        return replace(state, end=End(stop_reason=state.wrap_up, output=said))
    if problem is None:
        return _final(state, text)
    return append(_strike_repair(state), Message.user(problem))


def _final(state: State, output: Any) -> State:
    # What was said while the model was finishing it has not seen yet. But an answer is not given
    # up for a call that no limit allows.
    if state.inbox and exhausted(state) is None:
        return state
    if state.tree.children and state.wrap_up is None:
        return replace(state, resting=True)
    return replace(state, end=End(stop_reason=state.wrap_up or "end_turn", output=output))


def _strike_repair(state: State) -> State:
    """One more attempt at an output that does not fit, or the end of them."""
    if state.repairs < state.spec.output_repairs:
        return replace(state, repairs=state.repairs + 1)
    return _failed(state, "malformed_reply", "the model gave no output that fits the agent's output type")


def _opened(state: State, calls: list[ToolCall], now: datetime) -> State:
    opened = open_calls(state, calls, now)
    nothing_possible = all(call.problem for call in calls)
    strikes = state.strikes + 1 if nothing_possible else 0
    state = replace(
        state,
        calls=tuple(opened.calls),
        tool_calls=opened.tool_calls,
        per_tool=opened.per_tool,
        wrap_up=opened.wrap_up,
        strikes=strikes,
        handoff=opened.handoff,
        plan=state.plan if opened.plan is None else opened.plan,
        planned_at=state.planned_at if opened.plan is None else len(state.messages) - 1,
    )
    if any(call.problem and call.name == FINAL_ANSWER for call in calls):
        state = _strike_repair(state)
    if strikes >= MOST_STRIKES:
        return _failed(state, "malformed_reply", f"{strikes} steps in a row made no call that can be run")
    return state


def _unanswered(state: State, message: Message, why: str) -> State:
    """Every call gets a result, even one that is never run: a transcript must stay well-formed."""
    if not message.tool_calls:
        return state
    return append(state, Message(role="tool", parts=[_not_run(call, why) for call in message.tool_calls]))


def _not_run(call: ToolCall, why: str) -> ToolResult:
    if call.name == FINAL_ANSWER and call.problem is None:
        return _said(call, "accepted: this is the final answer", is_error=False)
    return _said(call, f"not run: {why}", is_error=True)


def _said(call: ToolCall, text: str, *, is_error: bool) -> ToolResult:
    return ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)], is_error=is_error)


def _started(state: State, event: CallsStarted) -> State:
    calls = tuple(replace(c, state="running") if c.call.id in event.ids else c for c in state.calls)
    state = replace(state, calls=calls)
    agents = [call for call in state.calls if call.call.id in event.ids and call.kind == "agent"]
    return _children_born(state, agents) if agents else state


def _children_born(state: State, calls: list[Call]) -> State:
    """Give each child its lease; a call that is to be answered at once gets its receipt."""
    others = [call for call in state.calls if call.kind == "agent" and call.state == "ready"]
    later = any(tool.kind == "agent" and tool.collect == "completion" for tool in state.spec.tools)
    lease = tree.lease_for(
        state.tree, limits_of(state), spent(state), len(calls) + len(others), alone=not later
    )
    for call in calls:
        tool = state.spec.tool(call.call.name)
        assert tool is not None, "only calls of known tools are started"
        assert tool.agent is not None, "a tool of kind agent names one"
        key = child_key(tool.agent, call.call.id)
        child = Child(key=key, name=tool.agent, run_id=child_run_id(state.id, key), lease=lease)
        state = replace(state, tree=tree.born(state.tree, child))
        if tool.collect == "completion":
            state = _returned(state, _said(call.call, receipt(key), is_error=False))
    return _close(state)


def _child_ended(state: State, event: ChildEnded) -> State:
    """Take in what a child used and gave. A child that was given up is not counted twice."""
    child = state.tree.child(event.key)
    if child is None:
        return state
    outcome = tree.outcome_of(child, event.outcome)
    state = _bill(state, outcome.usage, outcome.cost_microusd, Usage(), 0)
    state = replace(
        state, tree=tree.gone(state.tree, event.key), tool_calls=state.tool_calls + outcome.tool_calls
    )
    state = settled(state)
    if event.result is None:
        return _close(state)
    if any(call.call.id == event.result.call_id for call in state.calls if call.state == "running"):
        return _close(_returned(state, event.result))
    message = Message(role="user", parts=[*answer_of(event.key, event.result)])
    # Of the step in hand, what waited for the child to give something back may be refused by now.
    return _close(replace(state, inbox=(*state.inbox, message), resting=False))


def _landed(state: State, result: ToolResult) -> State:
    """A call has come back: with its result, or to be answered by what stands in for it."""
    call = next((one for one in state.calls if one.call.id == result.call_id), None)
    if call is None or call.state != "running":
        return _returned(state, result)
    if state.ending is not None:
        return _returned(state, result.model_copy(update={"name": call.call.name}))
    fallen = fallen_back(state, call, result)
    if fallen.state == "ready" and fallen.stand_in is not None:
        made = state.per_tool.get(fallen.stand_in, 0) + 1
        state = replace(state, per_tool={**state.per_tool, fallen.stand_in: made})
    return replace(state, calls=tuple(fallen if one is call else one for one in state.calls))


def _returned(state: State, result: ToolResult) -> State:
    return replace(state, calls=with_result(state.calls, result))


def _close(state: State) -> State:
    """Write the step's tool message once every call has its result."""
    results = [call.result for call in state.calls if call.result is not None]
    if not state.calls or len(results) < len(state.calls):
        return state
    spilled = state.spilled or any(result.spilled for result in results)
    state = append(replace(state, calls=(), spilled=spilled), Message(role="tool", parts=list(results)))
    if state.handoff is None or state.end is not None or state.ending is not None:
        return state
    return replace(state, end=End(stop_reason="handoff", output=state.handoff.model_dump(mode="json")))


def _sent(state: State, event: Sent) -> State:
    if event.id is not None:
        if event.id in state.heard:
            return state
        state = replace(state, heard=(*state.heard, event.id)[-MOST_HEARD:])
    question = next((c for c in state.calls if c.kind == "person" and c.state == "asking"), None)
    if question is not None:
        answer = ToolResult(call_id=question.call.id, name=question.call.name, content=_shown(event.message))
        return _close(_returned(state, answer))
    state = replace(state, inbox=(*state.inbox, event.message), resting=False)
    ended_by_itself = state.end is not None and state.end.stop_reason == "end_turn"
    can_go_on = ended_by_itself and exhausted(state) is None
    return replace(state, end=None) if can_go_on else state


def _shown(message: Message) -> list[ResultPart]:
    return [part for part in message.parts if isinstance(part, Text | Image | Document)]


def _decided(state: State, decision: ApprovalDecision) -> State:
    held = next((c for c in state.calls if c.call.id == decision.call_id and c.state == "asking"), None)
    if held is None or held.kind == "person":
        return state
    if not decision.allow:
        by = f" by {decision.by}" if decision.by else ""
        why = f": {decision.reason}" if decision.reason else "."
        text = f"This call was refused{by}{why}"
        return _returned(state, _said(held.call, text, is_error=True))
    call = held.call
    if decision.arguments is not None:
        call = call.model_copy(update={"arguments": dict(decision.arguments)})
    allowed = replace(held, call=call, state="ready", edited=decision.arguments is not None)
    return replace(state, calls=tuple(allowed if c is held else c for c in state.calls))


def _told_to_go_on(state: State) -> State:
    """By a person, who may know that it is mended: no circuit keeps it from asking once."""
    parked = state.parked
    told = parked is not None and (parked.resumes_at is not None or rule_for(parked.kind).counts_for_circuit)
    return replace(_resumed(state), force_once=told or state.force_once)


def _resumed(state: State) -> State:
    if state.parked is None:
        return replace(state, paused=False)
    started_anew = replace(state, model=0, settled=0, tried=(), stale=0, shrinks=0)
    return replace(started_anew, paused=False, parked=None, naps=0, outage=None)


def _awake(state: State, at: datetime) -> State:
    """Try again, unless it was resumed and parked anew meanwhile."""
    parked = state.parked
    if parked is None or parked.resumes_at is None or at < parked.resumes_at:
        return state
    naps = state.naps if rule_for(parked.kind).blocked_locally else state.naps + 1
    return replace(_resumed(state), paused=state.paused, naps=naps, outage=state.outage)


def _redriven(state: State, event: Redriven) -> State:
    """Go on, as another agent or with other limits; what was said and spent stays as it is."""
    if state.parked is None:
        return state
    if event.limits is not None:
        state = replace(state, relimited=(state.relimited or Limits()).replaced_by(event.limits))
    limits = state.limits
    if event.spec is not None:
        limits = event.spec.limits.tightened_by(state.request.limits)
        state = replace(state, spec=event.spec, members=event.members)
    if state.session is None:
        state = replace(state, limits=limits.replaced_by(state.relimited))
    elif event.spec is not None:
        state = replace(state, session=replace(state.session, turn_limits=limits))
    return replace(_told_to_go_on(state), paused=state.paused)


def _end_asked(state: State, event: EndAsked) -> State:
    """Start nothing any more: what is not under way never will be, and its place is filled."""
    if state.end is not None:
        return state
    waiting = [call.call for call in state.calls if call.state in ("unpaid", "ready", "asking")]
    for call in waiting:
        state = _returned(state, _not_run(call, "the run was ended"))
    # To cancel means now, and more than to stop.
    reason = "cancelled" if event.reason == "cancelled" else state.ending or event.reason
    return _close(replace(state, ending=reason))


def _give_up(state: State) -> State:
    """What was called back and did not answer may have happened, or not: say so."""
    text = "The run was ended while this call was under way; it may or may not have taken effect."
    for call in state.calls:
        if call.result is None:
            state = _returned(state, _said(call.call, text, is_error=True))
    if state.asking_model:  # what it has used, nobody hears: the sum is not the whole
        state = replace(state, asking_model=False, usage=state.usage + Usage(estimated=True))
    return _close(without_children(state))


def without_children(state: State) -> State:
    """Give up the children that did not answer; that what they used is missing, the usage says."""
    for child in state.tree.children:
        unheard = RunResult(agent=child.name, stop_reason="cancelled", usage=Usage(estimated=True))
        outcome = tree.outcome_of(child, unheard)
        state = _bill(state, outcome.usage, outcome.cost_microusd, Usage(), 0)
        state = replace(state, tool_calls=state.tool_calls + outcome.tool_calls)
    return replace(state, tree=replace(state.tree, children=()))


def _slid(state: State, start: int) -> State:
    dropped = state.messages[max(state.window_start, 1) : start]
    left_out = sum(estimated_tokens(message) for message in dropped)
    # The provider's count is of everything; ours is rough. Never let the estimate fall to nothing.
    remaining = max(state.context_tokens - left_out, state.context_tokens // 10)
    return replace(state, window_start=start, context_tokens=remaining)


def _model_failed(state: State, event: ModelFailed) -> State:
    failure = event.failure
    priced = state.spec.models[state.model].price is not None or not failure.wasted.total_tokens
    state = _bill(state, Usage(), 0 if priced else None, failure.wasted, failure.wasted_microusd)
    state = replace(state, asking_model=False, redo=True)
    if state.ending is not None:
        return state
    if failure.kind == "stale":
        again = replace(state, stale=state.stale + 1)
        return again if again.stale < MOST_STALE else _failed(again, "bug", failure.message)
    if failure.kind == "context_overflow":
        return _overflowed(state)
    return _next_model_or_end(state, failure, event.at)


def _next_model_or_end(state: State, failure: ModelFailure, at: datetime | None) -> State:
    found = _next_model(state, failure.kind, failure.message)
    if found is not None:
        return found
    rule = rule_for(failure.kind)
    if rule.parks and state.spec.on_failure == "park":
        parked = _failure(state, failure.kind, failure.message)
        since = state.outage.since if state.outage else at
        parked = parked.model_copy(update={"since": since, "resumes_at": _nap_end(state, failure, at)})
        outage = parked if parked.resumes_at else None
        return replace(state, parked=parked, outage=outage, force_once=False)
    return _failed(state, failure.kind, failure.message, answers=rule.parks)


def _next_model(state: State, kind: str, message: str) -> State | None:
    """With the next model of the chain in use, if one is taken on such an error."""
    index = following(state, kind)
    if index is None:
        return None
    name = state.spec.models[state.model].config.name
    return taken(replace(state, tried=(*state.tried, f"{name}: {kind}: {message}")), index)


def _nap_end(state: State, failure: ModelFailure, at: datetime | None) -> datetime | None:
    """When to try again: each time after twice as long, up to a bound: they must not sleep on for as long
    again when an outage is over. A call that was held here learnt nothing, and waits as long as that.
    """
    if failure.retry_in is None or at is None:
        return None
    if rule_for(failure.kind).blocked_locally:
        return at + min(failure.retry_in, LONGEST_NAP)
    longest = max(LONGEST_NAP, failure.retry_in)
    wanted: timedelta = failure.retry_in * 2 ** min(state.naps, MOST_DOUBLINGS)
    return at + min(wanted, longest)


def _failure(state: State, kind: str, message: str) -> Failure:
    name = state.spec.models[state.model].config.name
    return Failure(kind=kind, message=message, model=name, step=state.step)


def _failed(state: State, kind: str, message: str, *, answers: bool = False) -> State:
    end = early_end(state, "error")
    answers = answers and state.spec.on_failure == "answer"
    return replace(state, end=replace(end, failure=_failure(state, kind, message), answers=answers))


def _overflowed(state: State) -> State:
    """The provider says the context is too long: show the model half, or give up when that is nothing."""
    state = replace(state, redo=True)
    larger = _next_model(state, "context_overflow", "the conversation does not fit")
    if larger is not None:
        return larger
    visible = len(state.messages) - max(state.window_start, 1)
    start = slide(state.messages, state.window_start, most=max(2, visible // 2), tokens=None)
    if start > state.window_start and state.shrinks < MOST_SHRINKS:
        return replace(_slid(state, start), shrinks=state.shrinks + 1)
    return replace(state, end=early_end(state, "context_overflow"))
