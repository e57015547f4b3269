"""Limits of an agent as arithmetic: which limit is reached, and how much the next model call may spend."""

from dataclasses import replace
from typing import Final

from perdure.messages import Usage
from perdure.wire.reservation import Reservation
from perdure.wire.results import StopReason
from perdure.wire.spec import ModelSpec
from perdure.wire.tree import Amount, BudgetRequest

from .account import limits_of, room, spent
from .amounts import (
    NOTHING,
    REASONS,
    fields_of,
    is_bounded,
    least,
    minus,
    missing,
    of,
    reason_of,
    total,
)
from .commands import Allowance
from .input_tokens import next_input_tokens
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
    return next(reason_of(name) for name in fields_of(short) if of(short, name))


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
    # Its call has instructions of its own, which count as those of a step that summarizes.
    state = replace(state, step=replace(state.step, summarizing=state.step.summarizing or 1))
    model = state.spec.summary_model
    if model is None:
        return state
    return replace(state, spec=state.spec.model_copy(update={"models": (model,)}), chain=Chain())


def _configured_tokens(state: AgentState) -> int:
    return state.spec.models[state.chain.model].config.max_tokens


def allowance(state: AgentState, available: Amount | None = None) -> Allowance:
    """Return the longest answer with which no budget can be passed, and what all attempts at it may spend.

    `available` is what they may spend; None: all that is left.
    """
    configured = _configured_tokens(state)
    available = available or room(state)
    model = state.spec.models[state.chain.model]
    bounded = available.model_copy(update={"tool_calls": None, "per_tool": {}})
    if not is_bounded(bounded):
        return Allowance(max_tokens=configured)
    reservation = Reservation(
        amount=bounded, reads=next_input_tokens(state), one_hour_cache=_writes_for_an_hour(model)
    )
    longest = reservation.longest_reply(Usage(), 0, model.price)
    if longest is None or longest[0] >= configured:
        return Allowance(max_tokens=configured, reservation=reservation)
    tokens, field = longest
    return Allowance(max_tokens=max(tokens, 0), limited_by=REASONS[field], reservation=reservation)


def _highest_rates(state: AgentState) -> tuple[int, int] | None:
    """Return the highest rates of the next call's input and output, or None without a price."""
    model = state.spec.models[state.chain.model]
    if model.price is None:
        return None
    rates = model.price.rates_for(next_input_tokens(state))
    return rates.highest_input(one_hour_cache=_writes_for_an_hour(model)), rates.output


def _writes_for_an_hour(model: ModelSpec) -> bool:
    return model.config.options.get("cache_ttl") == "1h"


def unheard_usage(state: AgentState, attempts: int) -> tuple[Usage, int | None]:
    """Return what so many attempts may have spent of which nothing was heard, and its cost: all that they might.

    Attempts share a reservation, so together they cannot have spent more than it.
    """
    caller = as_summarizer(state) if state.step.summarizing else state
    amount = total([call_amount(caller, allowance(caller).max_tokens)] * attempts)
    most = least(amount, room(state))
    usage = Usage(input_tokens=most.input_tokens or 0, output_tokens=most.output_tokens or 0, estimated=True)
    return usage, most.cost_microusd if caller.is_priced else None
