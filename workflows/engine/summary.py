"""Summaries of messages that leave the window: when one may be written, and what follows from it.

Rules
1. A summary is a model call beside the steps: `asking_model` is set, and `summarizing` says up to where.
2. Its cost is booked as any call's. It is written only if its share of what every limit and the lease have left is
   enough for it.
3. Whatever becomes of it, the window then moves. Without a new summary the earlier one stays.
4. A summary is begun only with room for a useful one. A text that its length has cut is used, and says so.
"""

from dataclasses import replace
from typing import Final

from perdure.context import Summary
from perdure.tokens import text_tokens

from .account import room
from .amounts import missing, share_of
from .budget import (
    allowance,
    as_summarizer,
    call_amount,
    exhausted_limit,
    unheard_usage,
)
from .commands import MoveWindow, Summarize
from .events import Summarized, SummaryBegan
from .family import book
from .state import AgentState
from .window import SummarizeTo, move_window

LEAST_SUMMARY_TOKENS: Final = 256
"""Fewest output tokens of a summary that is worth its input."""


def command_for_summary(state: AgentState, move: SummarizeTo) -> Summarize | MoveWindow:
    """Return the command that carries out the move: plain sliding where limits leave no room for a summary."""
    summarizer = as_summarizer(state)
    if state.step.wrap_up is not None or exhausted_limit(summarizer) is not None:
        return MoveWindow(start=move.stop)
    context = state.spec.context
    available = share_of(room(summarizer), context.budget_share if isinstance(context, Summary) else 1)
    # A model that may not write more is not asked for more.
    least = min(LEAST_SUMMARY_TOKENS, summarizer.spec.models[summarizer.chain.model].config.max_tokens)
    if missing(call_amount(summarizer, least), available) is not None:
        return MoveWindow(start=move.stop)
    return Summarize(stop=move.stop, allowance=allowance(summarizer, available))


def begin_summary(state: AgentState, event: SummaryBegan) -> AgentState:
    """Return the state while a model writes the summary."""
    return replace(state, step=replace(state.step, asking_model=True, summarizing=event.stop))


def fold_summary(state: AgentState, event: Summarized) -> AgentState:
    """Return the state after the summary: its cost booked, the window moved, the new summary in its place."""
    stop = state.step.summarizing
    if not stop:
        return state  # it was given up meanwhile
    state = _book(state, event)
    state = replace(state, step=replace(state.step, asking_model=False, summarizing=0))
    if state.ending is not None:
        return state
    state = move_window(state, stop)
    text = _text(event)
    if not text:
        return state
    transcript = state.transcript
    # What the earlier summary has cost stays in the bound: a difference of two estimates is no bound.
    tokens = transcript.context_tokens + text_tokens(text)
    return replace(state, transcript=replace(transcript, summary=text, context_tokens=tokens))


def _book(state: AgentState, event: Summarized) -> AgentState:
    if event.outcome is not None and event.outcome.message.meta is not None:
        meta = event.outcome.message.meta
        state = book(state, event.outcome.wasted, event.outcome.wasted_microusd)
        return book(state, meta.usage, meta.cost_microusd)
    if event.failure is None:
        return state
    if event.failure.unheard:
        state = book(state, *unheard_usage(state, event.failure.unheard))
    priced = as_summarizer(state).is_priced or not event.failure.wasted.total_tokens
    return book(state, event.failure.wasted, event.failure.wasted_microusd if priced else None)


def _text(event: Summarized) -> str:
    """Return the summary, or nothing if the model refused or was stopped. The worker marks a text that is cut."""
    outcome = event.outcome
    if outcome is None or outcome.stop not in ("end_turn", "stop_sequence", "max_tokens"):
        return ""
    return outcome.message.text.strip()
