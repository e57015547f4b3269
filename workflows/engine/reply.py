"""Model call of a step: its start, its reply and its failure, as changes of the state.

Rules
1. A reply is booked before anything else: it costs, whatever it says.
2. A call that gave no reply is repeated as the same step: the limit of steps counts it once.
3. A reply with calls that can run opens them. Any other reply ends the run, or leads to one more step.
4. No call vanishes. A call beside a final answer is carried out first. One that was cut by the reply's length has
   failed, and the model may make it anew.
5. An end that the model chooses waits for messages that it has not read, while a limit allows another call. It waits
   for runs below that answer later, too.
6. A reply without words and calls is no answer: the run has its newest words, or asks once more.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any, assert_never

from perdure.messages import (
    Message,
    Text,
    ToolCall,
    Usage,
    estimated_tokens,
)
from perdure.wire.effects import CUT_CALL, ModelFailure
from perdure.wire.names import FINAL_ANSWER

from . import parking
from .budget import exhausted_limit, unheard_usage
from .calls import OpenedStep, close_calls, ledger_after, needs_another_reply, open_calls
from .chain import use_base_model
from .ends import early_end, fail, words_since_message
from .events import (
    ModelFailed,
    Replied,
    StepBegan,
)
from .family import book
from .overflow import REPLY_OVERFLOWED, fold_overflow
from .refusals import is_refused
from .report import shorten
from .state import AgentState, End
from .step import answer_calls, append, append_unread, close_step

MOST_INVALID_STEPS = 5
"""Steps in a row without one call that can be carried out: the model does not understand its tools."""
MOST_STALE_RETRIES = 5
"""Retries in a row because the worker's transcript was stale."""
MOST_CUT_REPLIES = 3
"""Replies in a row that were cut in the midst of their only call: the model does not make it shorter."""
_NO_OUTPUT = f"Your answer has no output of the type asked for: give it by calling {FINAL_ANSWER!r}."


def begin_step(state: AgentState, event: StepBegan) -> AgentState:
    """Return the state while the model is asked. It reads the inbox in this call."""
    unread = state.inbox.messages
    state = append_unread(replace(state, inbox=replace(state.inbox, messages=())), *unread)
    steps = state.ledger.steps if state.step.redo else state.ledger.steps + 1
    step = replace(state.step, redo=False, asking_model=True, clamped_by=event.clamped_by)
    return replace(state, step=step, ledger=replace(state.ledger, steps=steps))


def fold_reply(state: AgentState, event: Replied) -> AgentState:
    """Return the state after the model answered: booked, recorded, and changed as the stop reason asks for."""
    outcome = event.outcome
    if outcome.refused:
        refused = (*state.transcript.refused, *outcome.refused)
        state = replace(state, transcript=replace(state.transcript, refused=refused))
    meta = outcome.message.meta
    assert meta is not None, "the model activity always records how a reply came to be"
    state = book(state, outcome.wasted, outcome.wasted_microusd)
    state = book(state, meta.usage, meta.cost_microusd)
    state = replace(state, step=replace(state.step, asking_model=False, stale_retries=0))
    # A reply that overflowed is not kept: the same step is asked for again, with less to read.
    if outcome.stop == "context_overflow":
        return _fold_overflowed(state, outcome.message)
    message = outcome.message
    # Only the engine knows which models failed before this one; the activity saw one model.
    if state.chain.tried:
        named = meta.model_copy(update={"errors": [*state.chain.tried, *meta.errors]})
        message = message.model_copy(update={"meta": named})
    state = _record_reply(state, message, meta.usage)
    if state.ending is not None or outcome.stop == "cancelled":
        return answer_calls(state, message, "the run was ended")
    return _apply_stop(state, event, message)


def _fold_overflowed(state: AgentState, message: Message) -> AgentState:
    """Return the state after a reply ran into the end of the context: it is kept only where nothing follows it."""
    state = _redo_step(state)
    if state.ending is not None:
        return state
    state = fold_overflow(state, REPLY_OVERFLOWED)
    # Hooks have not seen its text.
    end = state.end
    if end is None or "after_model" in state.spec.hooks or not (message.text.strip() or message.tool_calls):
        return state
    kept = [part for part in message.parts if isinstance(part, Text | ToolCall)]
    state = append(state, message.model_copy(update={"parts": kept}))
    state = answer_calls(state, message, "the reply ran into the end of the context")
    return replace(state, end=replace(end, output=early_end(state, "context_overflow").output))


def _record_reply(state: AgentState, message: Message, usage: Usage) -> AgentState:
    """Return the state with the reply in its transcript, and every trouble of the call forgotten."""
    transcript = replace(state.transcript, messages=(*state.transcript.messages, message))
    counted_by = state.spec.models[state.chain.model].config.name
    # Only a provider's count says how long the context is. One that cost nothing says nothing about it.
    if usage.estimated:
        known = transcript.context_tokens + estimated_tokens(message)
        transcript = replace(transcript, context_tokens=known)
    elif usage.total_tokens:
        transcript = replace(transcript, context_tokens=usage.total_tokens, counted_by=counted_by)
    state = replace(
        state,
        transcript=transcript,
        inbox=replace(
            state.inbox,
            unanswered=(),
            below=tuple(left for left in state.inbox.below if left[0] > state.ledger.steps),
        ),
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
            state = answer_calls(state, message, f"the model's answer was stopped ({stop})")
            return replace(state, end=End(stop_reason=stop, output=text))
        case "max_tokens":
            return _apply_cut(state, event, message)
        case "pause_turn" if not message.tool_calls:
            return state  # the provider wants to be asked again, with what it has said so far
        case "end_turn" | "stop_sequence" | "tool_calls" | "pause_turn":
            return _apply_answer(state, event, message)
        case "context_overflow" | "cancelled":
            return state  # folded by the caller
        case _:
            assert_never(stop)


def _apply_cut(state: AgentState, event: Replied, message: Message) -> AgentState:
    """Return the state after a reply that its length cut: the cut call has failed, calls before it are complete."""
    calls = message.tool_calls
    cut_replies = 0 if any(call.problem is None for call in calls) else state.step.cut_replies + 1
    if calls and state.step.wrap_up is None and cut_replies < MOST_CUT_REPLIES:
        state = _apply_answer(state, event, message)
        return replace(state, step=replace(state.step, cut_replies=cut_replies))
    state = answer_calls(state, message, "the reply was cut by its length")
    if _reads_on(state):
        return state
    return _end_or_rest(state, early_end(state, state.step.clamped_by or "max_tokens"))


def _apply_answer(state: AgentState, event: Replied, message: Message) -> AgentState:
    outcome, calls = event.outcome, message.tool_calls
    state = replace(state, step=replace(state.step, cut_replies=0))
    if calls or outcome.output is not None:
        state = replace(state, step=replace(state.step, kept_output=outcome.output, empty_replies=0))
    reason = state.step.wrap_up
    if outcome.output is not None:
        if reason is None and needs_another_reply(state, calls):
            return close_step(_open_step(state, calls, event.at))
        closed = close_calls(state, calls, event.at, reason or "the final answer was given")
        return _finish_with(close_step(_with_opened(state, closed)), outcome.output)
    if not calls:
        return _apply_words(state, message.text, outcome.output_problem)
    # The last call of a run offers no tools. A model that calls some all the same gets no further call.
    if reason is not None:
        state = answer_calls(state, message, reason)
        return state if _reads_on(state) else replace(state, end=early_end(state, reason))
    return close_step(_open_step(state, calls, event.at))


def _apply_words(state: AgentState, text: str, problem: str | None) -> AgentState:
    """Return the state after a reply without calls."""
    is_plain = problem is None and state.spec.output_schema is None
    if is_plain and not text.strip():
        return _apply_silence(state)
    state = replace(state, step=replace(state.step, empty_replies=0))
    if state.step.wrap_up is not None:
        if _reads_on(state):
            return state
        output = text if is_plain else state.step.kept_output
        return replace(state, end=End(stop_reason=state.step.wrap_up, output=output))
    if is_plain:
        return _finish_with(state, text)
    return append(_count_repair(state), Message.user(problem or _NO_OUTPUT))


def _apply_silence(state: AgentState) -> AgentState:
    """Return the state after a reply with neither words nor calls: it is never an answer."""
    words = words_since_message(state)
    if _reads_on(state) or words or (state.tree.children and state.step.wrap_up is None):
        return _finish_with(state, words)
    if state.step.wrap_up is not None:
        return replace(state, end=early_end(state, state.step.wrap_up))
    if state.step.empty_replies:
        return fail(state, "malformed_reply", f"the model said nothing, twice{_did_last(state)}")
    return replace(state, step=replace(state.step, empty_replies=1))


def _did_last(state: AgentState) -> str:
    """Return the newest results in words: a caller may have use for them, though the run gave no answer."""
    newest = next(
        (message for message in reversed(state.messages[state.first_message :]) if message.role == "tool"),
        None,
    )
    if newest is None:
        return ""
    shown = "; ".join(f"{result.name}: {shorten(result.text, 200)}" for result in newest.tool_results[:3])
    return f"; its last results: {shown}"


def _reads_on(state: AgentState) -> bool:
    """Return whether the model is asked once more, because it has not read a message that came meanwhile.

    An answer is not given up for a call that no limit allows.
    """
    return bool(state.inbox.messages) and exhausted_limit(state) is None


def _finish_with(state: AgentState, output: Any) -> AgentState:
    if _reads_on(state):
        return state
    return _end_or_rest(state, End(stop_reason=state.step.wrap_up or "end_turn", output=output))


def _end_or_rest(state: AgentState, end: End) -> AgentState:
    """Return the state with the end that its reply has made, or at rest while children run.

    Their answers would be lost with the run: they wake the model again.
    """
    if state.tree.children and state.step.wrap_up is None:
        return replace(state, step=replace(state.step, resting=True))
    return replace(state, end=end)


def _count_repair(state: AgentState) -> AgentState:
    """Return the state with one more attempt at a fitting output, or failed when they are used up."""
    if state.step.repairs < state.spec.output_repairs:
        return replace(state, step=replace(state.step, repairs=state.step.repairs + 1))
    judges = "output type and hooks accept" if state.spec.hooks else "output type accepts"
    return fail(state, "malformed_reply", f"the model gave no answer that the agent's {judges}")


def _open_step(state: AgentState, calls: list[ToolCall], now: datetime) -> AgentState:
    state = _with_opened(state, open_calls(state, calls, now))
    refused = {call.call.id for call in state.step.calls if call.result and is_refused(call.result)}
    invalid = (
        state.step.invalid_steps + 1
        if all(call.problem or call.name == FINAL_ANSWER or call.id in refused for call in calls)
        else 0
    )
    state = replace(state, step=replace(state.step, invalid_steps=invalid))
    # A final answer that does not fit the type is an invalid call too, with a bound of its own. So is a cut reply.
    if any(call.problem not in (None, CUT_CALL) and call.name == FINAL_ANSWER for call in calls):
        state = _count_repair(state)
    if invalid >= MOST_INVALID_STEPS and refused:
        # The model knows its tools, but asks for nothing that may still run: it gets its last word.
        wrap_up = state.step.wrap_up or "max_tool_calls"
        return replace(state, step=replace(state.step, wrap_up=wrap_up))
    if invalid >= MOST_INVALID_STEPS:
        return fail(state, "malformed_reply", f"{invalid} steps in a row made no call that can be run")
    return state


def _with_opened(state: AgentState, opened: OpenedStep) -> AgentState:
    """Return the state with the calls of a reply, and all that they change at once."""
    step = replace(
        state.step,
        calls=tuple(opened.calls),
        wrap_up=opened.wrap_up,
        handoff=opened.handoff,
        identical=opened.identical,
    )
    state = replace(state, step=step, ledger=ledger_after(state, opened))
    if opened.plan is None:
        return state
    planned_at = len(state.messages) - 1
    return replace(state, transcript=replace(state.transcript, plan=opened.plan, planned_at=planned_at))


def fold_model_failure(state: AgentState, event: ModelFailed) -> AgentState:
    """Return the state after a failed call: another try, another model, parked, or failed."""
    state = _redo_step(_book_failure(state, event.failure))
    state = replace(state, step=replace(state.step, asking_model=False))
    if state.ending is not None:
        return state
    match event.failure.kind:
        case "stale":
            return _retry_stale(state, event.failure)
        case "context_overflow":
            return fold_overflow(state, event.failure.message)
        case "reservation_spent":
            return state  # booked above: the same step is reserved for anew, if anything is left
        case _:
            return parking.fall_back_or_park(state, event.failure, event.at)


def _book_failure(state: AgentState, failure: ModelFailure) -> AgentState:
    if failure.unheard:
        state = book(state, *unheard_usage(state, failure.unheard))
    # Without a price the sum becomes unknown, unless the attempts have used no tokens at all.
    priced = state.spec.models[state.chain.model].price is not None or not failure.wasted.total_tokens
    return book(state, failure.wasted, failure.wasted_microusd if priced else None)


def _retry_stale(state: AgentState, failure: ModelFailure) -> AgentState:
    # The run may have answered the worker's query from an older state. Several in a row mean a bug of ours.
    retries = state.step.stale_retries + 1
    state = replace(state, step=replace(state.step, stale_retries=retries))
    return state if retries < MOST_STALE_RETRIES else fail(state, "bug", failure.message)


def _redo_step(state: AgentState) -> AgentState:
    return replace(state, step=replace(state.step, redo=True))
