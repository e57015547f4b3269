"""Limits of an agent as arithmetic: which limit is reached, and how much the next model call may spend."""

from dataclasses import replace
from typing import Final

from perdure.messages import estimated_tokens
from perdure.wire.results import StopReason
from perdure.wire.tree import Amount, BudgetRequest

from .account import limits_of, room, spent
from .amounts import FIELDS, NOTHING, REASONS, least, minus, missing, of
from .commands import Allowance
from .state import AgentState, Chain
from .tree import shortage

LEAST_REPLY_TOKENS: Final = 16
"""Fewest output tokens with which a model call is worth its input."""
_CALLS_AHEAD: Final = 4
"""Number of calls that a child asks its lender for at once."""


def exhausted_limit(state: AgentState) -> StopReason | None:
    """Return the limit that forbids another model call, or None."""
    if state.limits.steps is not None and not state.step.redo and state.ledger.steps >= state.limits.steps:
        return "max_steps"
    return short_of(missing(call_amount(state, LEAST_REPLY_TOKENS), room(state)))


def short_of(short: Amount | None) -> StopReason | None:
    """Return the stop reason that goes with a missing amount."""
    if short is None:
        return None
    return next(REASONS[name] for name in FIELDS if of(short, name))


def budget_request(state: AgentState) -> BudgetRequest | None:
    """Return the request to send to the lender before the next model call, or None."""
    if state.tree.lease.lender is None or state.tree.lease.refused:
        return None
    floor, full = (call_amount(state, tokens) for tokens in (LEAST_REPLY_TOKENS, _configured_tokens(state)))
    # Several calls ahead, so that a child does not ask its lender before each call.
    ahead = call_amount(state, _configured_tokens(state), times=_CALLS_AHEAD)
    short, lender_could = shortage(state.tree, limits_of(state), spent(state), floor)
    if short is not None:
        preferred = missing(ahead, room(state)) or short
        return BudgetRequest(minimum=short, preferred=preferred) if lender_could else None
    scant, lender_could = shortage(state.tree, limits_of(state), spent(state), full)
    # After a short grant only the minimum is asked for: a request that is met in part would repeat each step.
    if scant is None or not lender_could or state.tree.lease.lender_is_short:
        return None
    return BudgetRequest(minimum=Amount(), preferred=missing(ahead, room(state)) or scant)


def waits_for_children(state: AgentState) -> bool:
    """Return whether the missing amount is leased to the run's own children, who will give it back."""
    short = missing(call_amount(state, LEAST_REPLY_TOKENS), room(state))
    if short is None or not state.tree.children:
        return False
    alone = minus(least(limits_of(state), state.tree.lease.amount), spent(state))
    return missing(call_amount(state, LEAST_REPLY_TOKENS), alone) is None


def next_input_tokens(state: AgentState) -> int:
    """Return the tokens that the next call reads, unread messages included."""
    return state.transcript.context_tokens + sum(
        estimated_tokens(message) for message in state.inbox.messages
    )


def call_amount(state: AgentState, reply_tokens: int, times: int = 1) -> Amount:
    """Return the amount that the next model call spends with an answer of this length, times `times`.

    The input is reserved at its full price, as if nothing were cached: a budget is an upper bound.
    """
    read = max(next_input_tokens(state), 1)  # so that a budget that was passed is used up
    rates = _highest_rates(state)
    # Rounded up: many calls, each rounded down, would pass the budget unseen.
    cost = None if rates is None else -(-(read * rates[0] + reply_tokens * rates[1]) // 1_000_000)
    return Amount(
        cost_microusd=None if cost is None else cost * times,
        input_tokens=read * times,
        output_tokens=reply_tokens * times,
        total_tokens=(read + reply_tokens) * times,
    )


def pending_amount(state: AgentState) -> Amount:
    """Return the amount that the pending model call may still spend.

    Its input may be less than what is reserved, and its answer shorter. The rest is free once it has answered.
    """
    if not state.step.asking_model:
        return NOTHING
    caller = as_summarizer(state) if state.step.summarizing else state
    return call_amount(caller, _configured_tokens(caller))


def as_summarizer(state: AgentState) -> AgentState:
    """Return the state with the model that writes summaries in use, for the arithmetic of its call."""
    model = state.spec.summary_model
    if model is None:
        return state
    return replace(state, spec=state.spec.model_copy(update={"models": (model,)}), chain=Chain())


def _configured_tokens(state: AgentState) -> int:
    return state.spec.models[state.chain.model].config.max_tokens


def allowance(state: AgentState) -> Allowance:
    """Return the longest answer with which no budget can be passed."""
    configured = _configured_tokens(state)
    available = room(state)
    bounds: list[tuple[int, StopReason]] = []
    if available.output_tokens is not None:
        bounds.append((available.output_tokens, "token_budget"))
    if available.total_tokens is not None:
        bounds.append((available.total_tokens - next_input_tokens(state), "token_budget"))
    affordable = _affordable_output(state, available.cost_microusd)
    if affordable is not None:
        bounds.append((affordable, "cost_budget"))
    # The smallest bound counts, and names the budget by which the answer is limited.
    smallest = min(bounds, default=None)
    if smallest is None or smallest[0] >= configured:
        return Allowance(max_tokens=configured)
    return Allowance(max_tokens=max(smallest[0], 0), limited_by=smallest[1])


def _affordable_output(state: AgentState, budget: int | None) -> int | None:
    """Return the output tokens that the budget still pays for, or None without a budget."""
    rates = _highest_rates(state)
    if budget is None or rates is None:
        return None
    per_input, per_output = rates
    remaining = budget * 1_000_000 - next_input_tokens(state) * per_input
    # Output that costs nothing has no bound, if the money left pays for the input.
    return remaining // per_output if per_output else (2**31 if remaining >= 0 else 0)


def _highest_rates(state: AgentState) -> tuple[int, int] | None:
    """Return the highest rates of the next call's input and output, or None without a price."""
    model = state.spec.models[state.chain.model]
    if model.price is None:
        return None
    rates = model.price.rates_for(next_input_tokens(state))
    one_hour_cache = model.config.options.get("cache_ttl") == "1h"
    return rates.highest_input(one_hour_cache=one_hour_cache), rates.output
