"""`fold` of an agent: the next state of its run after an event. Pure and total; the rules stand in `state`."""

from dataclasses import replace
from datetime import datetime
from typing import Any, assert_never

from perdure.limits import Limits
from perdure.messages import (
    Document,
    Image,
    Message,
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
from perdure.wire.spec import AgentSpec

from . import hooks, parking, tree
from .account import limits_of, spent
from .agent_calls import late_answer, receipt
from .budget import exhausted_limit
from .calls import admit_paid_calls, apply_result, asks_hooks, open_calls, with_arguments, with_result
from .chain import use_base_model, use_model
from .ends import early_end, fail
from .events import (
    ApprovalResolved,
    BudgetGranted,
    BudgetRequested,
    CallReturned,
    CallsStarted,
    ChildEnded,
    ChildGranted,
    ChildReported,
    EndRequested,
    Event,
    GraceExpired,
    HooksAnswered,
    HooksFailed,
    HooksStarted,
    IdleChecked,
    MessageSent,
    ModelFailed,
    ModelSwitched,
    NodesStarted,
    ParentInformed,
    Paused,
    Redriven,
    Replied,
    Resumed,
    RetryDue,
    Said,
    StepBegan,
    TurnBegan,
    TurnEnded,
    TurnInterrupted,
    WindowMoved,
)
from .family import book, deadline_of, ending_reason, fold_tree_event, unheard_outcome
from .state import AgentState, Call, End, Origin, Transcript
from .window import half_window_start

MOST_INVALID_STEPS = 5
"""Steps in a row without one call that can be carried out: the model does not understand its tools."""
MOST_STALE_RETRIES = 5
MOST_SEEN_IDS = 256
"""Message ids that are remembered, against a message that comes twice."""
MOST_OVERFLOW_CUTS = 8
_NO_OUTPUT = f"Your answer has no output of the type asked for: give it by calling {FINAL_ANSWER!r}."


def initial(request: RunRequest, spec: AgentSpec, now: datetime, origin: Origin | None = None) -> AgentState:
    """Return the state of a run that has just been given its agent."""
    origin = origin or Origin()
    history = origin.child.history if origin.child else []
    return append(empty_state(request, spec, now, origin), *history, Message.user(request.prompt))


def empty_state(request: RunRequest, spec: AgentSpec, now: datetime, origin: Origin) -> AgentState:
    """Return the state before any message."""
    limits: Limits = spec.limits.tightened_by(request.limits)
    tools = [tool.definition.model_dump() for tool in spec.tools]
    if origin.child is not None and origin.child.peers:
        tools.append(HANDOFF_TOOL.model_dump())
    if spec.planning:
        tools.append(PLAN_TOOL.model_dump())
    fixed = canonical_json([spec.instructions, tools, spec.output_schema or ""])
    return AgentState(
        request=request,
        spec=spec,
        limits=limits,
        started_at=now,
        deadline_at=deadline_of(limits, now, origin.child),
        transcript=Transcript(context_tokens=estimate_tokens(len(fixed))),
        id=origin.id,
        members=origin.members,
        tree=tree.tree_of(origin.child),
    )


def fold(state: AgentState, event: Event) -> AgentState:  # noqa: C901 - one case an event
    """Return the state after the event."""
    match event:
        case StepBegan():
            return _begin_step(state, event)
        case Replied():
            return _fold_reply(state, event)
        case ModelFailed():
            return _fold_model_failure(state, event)
        case CallsStarted():
            return _mark_running(state, event)
        case CallReturned():
            return _close_step(_fold_result(state, event))
        case HooksStarted():
            return hooks.start_hooks(state, event)
        case HooksAnswered():
            return _close_step(hooks.answer_hooks(state, event))
        case HooksFailed():
            return _close_step(hooks.fail_hooks(state, event))
        case MessageSent():
            return _fold_message(state, event)
        case ApprovalResolved():
            return _close_step(_resolve_approval(state, event.decision))
        case Paused():
            return replace(state, paused=True)
        case Resumed():
            return parking.resume(state)
        case RetryDue():
            return parking.retry(state, event.at)
        case Redriven():
            return parking.redrive(state, event)
        case EndRequested():
            return _begin_end(state, event)
        case GraceExpired():
            return _give_up_pending(state)
        case WindowMoved():
            return _move_window(state, event.start)
        case ModelSwitched():
            return use_model(state, event.model)
        case ChildEnded():
            return _fold_child_end(state, event)
        case ChildReported() | BudgetGranted():
            # Either may free what an unpaid call waits for.
            return _close_step(admit_paid_calls(fold_tree_event(state, event)))
        case ChildGranted() | BudgetRequested() | ParentInformed():
            return fold_tree_event(state, event)
        case NodesStarted():
            return state  # an agent has no nodes
        case Said() | TurnBegan() | TurnEnded() | TurnInterrupted() | IdleChecked():
            return state  # a session's: see `session`
        case _:
            assert_never(event)


def append(state: AgentState, *messages: Message) -> AgentState:
    """Return the state with these messages at the end of its transcript."""
    new_tokens = sum(estimated_tokens(message) for message in messages)
    transcript = replace(
        state.transcript,
        messages=state.transcript.messages + messages,
        context_tokens=state.transcript.context_tokens + new_tokens,
    )
    return replace(state, transcript=transcript)


# -- the model call


def _begin_step(state: AgentState, event: StepBegan) -> AgentState:
    unread = state.inbox.messages
    state = append(replace(state, inbox=replace(state.inbox, messages=())), *unread)
    steps = state.ledger.steps if state.step.redo else state.ledger.steps + 1
    step = replace(state.step, redo=False, asking_model=True, clamped_by=event.clamped_by)
    return replace(state, step=step, ledger=replace(state.ledger, steps=steps))


def _fold_reply(state: AgentState, event: Replied) -> AgentState:
    outcome = event.outcome
    meta = outcome.message.meta
    assert meta is not None, "the model activity always records how a reply came to be"
    state = book(state, outcome.wasted, outcome.wasted_microusd)
    state = book(state, meta.usage, meta.cost_microusd)
    state = replace(state, step=replace(state.step, asking_model=False, stale_retries=0))
    if outcome.stop == "context_overflow":
        return _cut_window(state) if state.ending is None else _redo_step(state)
    message = outcome.message
    if state.chain.tried:
        named = meta.model_copy(update={"errors": list(state.chain.tried)})
        message = message.model_copy(update={"meta": named})
    state = _record_reply(state, message, meta.usage)
    if state.ending is not None or outcome.stop == "cancelled":
        return _answer_calls(state, message, "the run was ended")
    return _apply_stop(state, event, message)


def _record_reply(state: AgentState, message: Message, usage: Usage) -> AgentState:
    """Return the state with the reply in its transcript, and every trouble of the call forgotten."""
    transcript = replace(state.transcript, messages=(*state.transcript.messages, message))
    # A reply that cost nothing (a cancelled one) says nothing about the context either.
    if usage.total_tokens:
        transcript = replace(transcript, context_tokens=usage.total_tokens)
    state = replace(
        state,
        transcript=transcript,
        step=replace(state.step, overflow_cuts=0),
        chain=replace(state.chain, tried=()),
        parking=replace(state.parking, auto_retries=0, outage=None, force_once=False),
    )
    return use_base_model(state)


def _apply_stop(state: AgentState, event: Replied, message: Message) -> AgentState:
    stop = event.outcome.stop
    match stop:
        case "refusal" | "guardrail":
            text = message.text if state.spec.output_schema is None else None
            state = _answer_calls(state, message, f"the model's answer was stopped ({stop})")
            return replace(state, end=End(stop_reason=stop, output=text))
        case "max_tokens":
            state = _answer_calls(state, message, "the answer was cut by its length")
            return replace(state, end=early_end(state, state.step.clamped_by or "max_tokens"))
        case "pause_turn" if not message.tool_calls:
            return state
        case "end_turn" | "stop_sequence" | "tool_calls" | "pause_turn":
            return _apply_answer(state, event, message)
        case "context_overflow" | "cancelled":
            return state  # folded by the caller
        case _:
            assert_never(stop)


def _apply_answer(state: AgentState, event: Replied, message: Message) -> AgentState:
    outcome = event.outcome
    if outcome.output is not None:
        state = _answer_calls(state, message, "the final answer was given")
        return _finish_with(state, outcome.output)
    if not message.tool_calls:
        return _apply_words(state, message.text, outcome.output_problem)
    reason = state.step.wrap_up
    if reason is not None:
        state = _answer_calls(state, message, reason)
        return replace(state, end=early_end(state, reason))
    return _close_step(_open_calls(state, message.tool_calls, event.at))


def _apply_words(state: AgentState, text: str, problem: str | None) -> AgentState:
    """Return the state after a reply without calls."""
    if state.step.wrap_up is not None:
        allowed = state.spec.output_schema is None and problem is None
        return replace(state, end=End(stop_reason=state.step.wrap_up, output=text if allowed else None))
    if problem is None and state.spec.output_schema is None:
        return _finish_with(state, text)
    return append(_count_repair(state), Message.user(problem or _NO_OUTPUT))


def _finish_with(state: AgentState, output: Any) -> AgentState:
    # The model has not seen a message that came while it was finishing. But an answer is not given up for a
    # call that no limit allows.
    if state.inbox.messages and exhausted_limit(state) is None:
        return state
    if state.tree.children and state.step.wrap_up is None:
        return replace(state, step=replace(state.step, resting=True))
    return replace(state, end=End(stop_reason=state.step.wrap_up or "end_turn", output=output))


def _count_repair(state: AgentState) -> AgentState:
    """Return the state with one more attempt at a fitting output, or failed when they are used up."""
    if state.step.repairs < state.spec.output_repairs:
        return replace(state, step=replace(state.step, repairs=state.step.repairs + 1))
    return fail(
        state, "malformed_reply", "the model gave no answer that the agent's output type and hooks accept"
    )


def _fold_model_failure(state: AgentState, event: ModelFailed) -> AgentState:
    state = _redo_step(_book_failure(state, event.failure))
    state = replace(state, step=replace(state.step, asking_model=False))
    if state.ending is not None:
        return state
    match event.failure.kind:
        case "stale":
            return _retry_stale(state, event.failure)
        case "context_overflow":
            return _cut_window(state)
        case _:
            return parking.fall_back_or_park(state, event.failure, event.at)


def _book_failure(state: AgentState, failure: ModelFailure) -> AgentState:
    priced = state.spec.models[state.chain.model].price is not None or not failure.wasted.total_tokens
    return book(state, failure.wasted, failure.wasted_microusd if priced else None)


def _retry_stale(state: AgentState, failure: ModelFailure) -> AgentState:
    retries = state.step.stale_retries + 1
    state = replace(state, step=replace(state.step, stale_retries=retries))
    return state if retries < MOST_STALE_RETRIES else fail(state, "bug", failure.message)


def _redo_step(state: AgentState) -> AgentState:
    return replace(state, step=replace(state.step, redo=True))


# -- the window


def _move_window(state: AgentState, start: int) -> AgentState:
    transcript = state.transcript
    dropped = transcript.messages[max(transcript.window_start, 1) : start]
    left_out = sum(estimated_tokens(message) for message in dropped)
    # The provider's count covers everything; ours is rough. The estimate must never fall to nothing.
    remaining = max(transcript.context_tokens - left_out, transcript.context_tokens // 10)
    return replace(state, transcript=replace(transcript, window_start=start, context_tokens=remaining))


def _cut_window(state: AgentState) -> AgentState:
    """Return the state after the provider found the context too long: a larger model, half the window, or the end."""
    state = _redo_step(state)
    larger = parking.with_next_model(state, "context_overflow", "the conversation does not fit")
    if larger is not None:
        return larger
    start = half_window_start(state.transcript)
    if start > state.transcript.window_start and state.step.overflow_cuts < MOST_OVERFLOW_CUTS:
        state = _move_window(state, start)
        return replace(state, step=replace(state.step, overflow_cuts=state.step.overflow_cuts + 1))
    return replace(state, end=early_end(state, "context_overflow"))


# -- tool calls


def _open_calls(state: AgentState, calls: list[ToolCall], now: datetime) -> AgentState:
    opened = open_calls(state, calls, now)
    invalid = state.step.invalid_steps + 1 if all(call.problem for call in calls) else 0
    step = replace(
        state.step,
        calls=tuple(opened.calls),
        wrap_up=opened.wrap_up,
        invalid_steps=invalid,
        handoff=opened.handoff,
    )
    ledger = replace(state.ledger, tool_calls=opened.tool_calls, per_tool=opened.per_tool)
    state = replace(state, step=step, ledger=ledger)
    if opened.plan is not None:
        planned_at = len(state.messages) - 1
        state = replace(state, transcript=replace(state.transcript, plan=opened.plan, planned_at=planned_at))
    if any(call.problem and call.name == FINAL_ANSWER for call in calls):
        state = _count_repair(state)
    if invalid >= MOST_INVALID_STEPS:
        return fail(state, "malformed_reply", f"{invalid} steps in a row made no call that can be run")
    return state


def _answer_calls(state: AgentState, message: Message, why: str) -> AgentState:
    """Give every call a result, even one that is never run: a transcript must stay well-formed."""
    if not message.tool_calls:
        return state
    return append(
        state, Message(role="tool", parts=[_unrun_result(call, why) for call in message.tool_calls])
    )


def _unrun_result(call: ToolCall, why: str) -> ToolResult:
    if call.name == FINAL_ANSWER and call.problem is None:
        return _text_result(call, "accepted: this is the final answer", is_error=False)
    return _text_result(call, f"not run: {why}", is_error=True)


def _text_result(call: ToolCall, text: str, *, is_error: bool) -> ToolResult:
    return ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)], is_error=is_error)


def _with_calls(state: AgentState, calls: tuple[Call, ...]) -> AgentState:
    return replace(state, step=replace(state.step, calls=calls))


def _mark_running(state: AgentState, event: CallsStarted) -> AgentState:
    started = [call for call in state.step.calls if call.call.id in event.ids]
    state = _with_calls(
        state,
        tuple(replace(call, state="running") if call in started else call for call in state.step.calls),
    )
    agents = [call for call in started if call.kind == "agent"]
    return _add_children(state, agents) if agents else state


def _add_children(state: AgentState, calls: list[Call]) -> AgentState:
    """Give each child its lease. A call whose answer comes later gets its receipt at once."""
    waiting = [call for call in state.step.calls if call.kind == "agent" and call.state == "ready"]
    later = any(tool.kind == "agent" and tool.collect == "completion" for tool in state.spec.tools)
    starting = len(calls) + len(waiting)
    lease = tree.lease_for(state.tree, limits_of(state), spent(state), starting, alone=not later)
    for call in calls:
        tool = state.spec.tool(call.call.name)
        assert tool is not None, "only calls of known tools are started"
        assert tool.agent is not None, "a tool of kind agent names one"
        key = child_key(tool.agent, call.call.id)
        child = tree.Child(key=key, name=tool.agent, run_id=child_run_id(state.id, key), lease=lease)
        state = replace(state, tree=tree.add_child(state.tree, child))
        if tool.collect == "completion":
            state = _set_result(state, _text_result(call.call, receipt(key), is_error=False))
    return _close_step(state)


def _fold_child_end(state: AgentState, event: ChildEnded) -> AgentState:
    """Book what a child used, and take its answer. A child that was given up is not counted twice."""
    child = state.tree.child(event.key)
    if child is None:
        return state
    outcome = tree.outcome_of(child, event.outcome)
    state = book(state, outcome.usage, outcome.cost_microusd, tool_calls=outcome.tool_calls)
    state = admit_paid_calls(replace(state, tree=tree.remove_child(state.tree, event.key)))
    if event.result is None:
        return _close_step(state)
    call = next(
        (c for c in state.step.calls if c.call.id == event.result.call_id and c.state == "running"), None
    )
    if call is not None:
        return _close_step(_finish_call(state, call, with_result((call,), event.result)[0]))
    message = Message(role="user", parts=[*late_answer(event.key, event.result)])
    # A call that waited for the child to give something back may be refused by now.
    return _close_step(_receive(state, message))


def _receive(state: AgentState, message: Message) -> AgentState:
    inbox = replace(state.inbox, messages=(*state.inbox.messages, message))
    return replace(state, inbox=inbox, step=replace(state.step, resting=False, end_checked=False))


def _fold_result(state: AgentState, event: CallReturned) -> AgentState:
    """Return the state after a call returned: with its result, ready for the tool's stand-in, or asking."""
    result = event.result
    call = next((call for call in state.step.calls if call.call.id == result.call_id), None)
    if call is None or call.state != "running":
        return _set_result(state, result)
    if state.ending is not None:
        return _set_result(state, result.model_copy(update={"name": call.call.name}))
    if event.arguments is not None:
        tool = state.spec.tool(call.call.name)
        asked = replace(call, call=with_arguments(tool, call.call, dict(event.arguments)))
        state, call = _with_calls(state, tuple(asked if c is call else c for c in state.step.calls)), asked
    if event.ask is not None:
        held = replace(
            call, state="asking", checked=True, ask_reason=event.ask, records=(*call.records, *result.hooks)
        )
        return _with_calls(state, tuple(held if c is call else c for c in state.step.calls))
    if event.end_turn is not None:
        state = replace(state, step=replace(state.step, ending_text=event.end_turn))
    changed = apply_result(state, call, result)
    if changed.state == "ready" and changed.stand_in is not None:
        made = state.ledger.per_tool.get(changed.stand_in, 0) + 1
        per_tool = {**state.ledger.per_tool, changed.stand_in: made}
        state = replace(state, ledger=replace(state.ledger, per_tool=per_tool))
    return _finish_call(state, call, changed)


def _finish_call(state: AgentState, call: Call, changed: Call) -> AgentState:
    """Return the state with the changed call; hooks see the result of a call that no activity of ours made."""
    stand_in = state.spec.tool(call.stand_in) if call.stand_in else None
    kind = stand_in.kind if stand_in else call.kind
    if changed.state == "done" and state.ending is None and asks_hooks(state, kind, "after_tool"):
        changed = replace(changed, state="unreviewed", unreviewed=changed.result, result=None)
    return _with_calls(state, tuple(changed if c is call else c for c in state.step.calls))


def _set_result(state: AgentState, result: ToolResult) -> AgentState:
    return _with_calls(state, with_result(state.step.calls, result))


def _close_step(state: AgentState) -> AgentState:
    """Write the step's tool message once every call has its result."""
    calls = state.step.calls
    results = [call.result for call in calls if call.result is not None]
    if not calls or len(results) < len(calls):
        return state
    spilled = state.transcript.spilled or any(result.spilled for result in results)
    state = replace(_with_calls(state, ()), transcript=replace(state.transcript, spilled=spilled))
    state = append(state, Message(role="tool", parts=list(results)))
    if state.step.ending_text is not None and state.end is None and state.ending is None:
        return hooks.end_by_hook(state, state.step.ending_text)
    handoff = state.step.handoff
    if handoff is None or state.end is not None or state.ending is not None:
        return state
    return replace(state, end=End(stop_reason="handoff", output=handoff.model_dump(mode="json")))


# -- people


def _fold_message(state: AgentState, event: MessageSent) -> AgentState:
    if event.id is not None:
        if event.id in state.inbox.seen_ids:
            return state
        seen = (*state.inbox.seen_ids, event.id)[-MOST_SEEN_IDS:]
        state = replace(state, inbox=replace(state.inbox, seen_ids=seen))
    question = next((c for c in state.step.calls if c.kind == "person" and c.state == "asking"), None)
    if question is not None:
        return _close_step(_set_result(state, _answer_to(question.call, event.message)))
    state = _receive(state, event.message)
    finished = state.end is not None and state.end.stop_reason == "end_turn"
    # A message that arrives while the run ends well makes it go on, so that a model reads it.
    return replace(state, end=None) if finished and exhausted_limit(state) is None else state


def _answer_to(question: ToolCall, message: Message) -> ToolResult:
    content = [part for part in message.parts if isinstance(part, Text | Image | Document)]
    return ToolResult(call_id=question.id, name=question.name, content=content)


def _resolve_approval(state: AgentState, decision: ApprovalDecision) -> AgentState:
    asking = (c for c in state.step.calls if c.call.id == decision.call_id and c.state == "asking")
    held = next(asking, None)
    if held is None or held.kind == "person":
        return state
    if not decision.allow:
        by = f" by {decision.by}" if decision.by else ""
        why = f": {decision.reason}" if decision.reason else "."
        return _set_result(state, _text_result(held.call, f"This call was refused{by}{why}", is_error=True))
    call = held.call
    if decision.arguments is not None:
        call = with_arguments(state.spec.tool(call.name), call, decision.arguments)
    allowed = replace(held, call=call, state="ready", edited=decision.arguments is not None)
    return _with_calls(state, tuple(allowed if c is held else c for c in state.step.calls))


# -- the end


def _begin_end(state: AgentState, event: EndRequested) -> AgentState:
    """Start nothing any more. A call that was not started never will be, and gets its result."""
    if state.end is not None:
        return state
    unstarted = ("unpaid", "unchecked", "checking", "ready", "asking")
    for call in [call.call for call in state.step.calls if call.state in unstarted]:
        state = _set_result(state, _unrun_result(call, "the run was ended"))
    state = hooks.withhold_unreviewed(state)
    return _close_step(replace(state, ending=ending_reason(state, event.reason)))


def _give_up_pending(state: AgentState) -> AgentState:
    """Go on without work that did not answer. It may have happened, or not: the result says so."""
    text = "The run was ended while this call was under way; it may or may not have taken effect."
    for call in state.step.calls:
        if call.result is None:
            state = _set_result(state, _text_result(call.call, text, is_error=True))
    if state.step.asking_hooks is not None:
        state = replace(state, step=replace(state.step, asking_hooks=None))
    if state.step.asking_model:  # its usage is never heard of: the sum is not the whole
        state = replace(state, step=replace(state.step, asking_model=False))
        state = book(state, Usage(estimated=True), 0)
    return _close_step(give_up_children(state))


def give_up_children(state: AgentState) -> AgentState:
    """Go on without the children that did not answer. The usage says that a part of it is missing."""
    for child in state.tree.children:
        outcome = unheard_outcome(child)
        state = book(state, outcome.usage, outcome.cost_microusd, tool_calls=outcome.tool_calls)
    return replace(state, tree=replace(state.tree, children=()))
