"""Limits, as pure arithmetic: what is used up, and what the next model call may still spend."""

from dataclasses import dataclass
from typing import Final

from perdure.messages import estimated_tokens
from perdure.wire.results import StopReason
from perdure.wire.tree import Amount

from .account import limits_of, room, spent
from .amounts import FIELDS, NOTHING, REASONS, least, minus, missing, of
from .state import State
from .tree import lacking

LEAST_REPLY_TOKENS: Final = 16
"""With less than this left for the answer, a model call is not worth its input."""
_CALLS_AHEAD: Final = 4
"""For how many calls a child asks its parent at once."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the next model call may spend. `by` is the budget that made it less than configured."""

    max_tokens: int
    by: StopReason | None = None


@dataclass(frozen=True, kw_only=True)
class Want:
    """What the parent is asked for: this much is needed, that much would be nice."""

    need: Amount
    wish: Amount


def exhausted(state: State) -> StopReason | None:
    """The limit that forbids another model call, if one does."""
    if state.limits.steps is not None and not state.redo and state.step >= state.limits.steps:
        return "max_steps"
    return short_of(missing(call_amount(state, LEAST_REPLY_TOKENS), room(state)))


def short_of(short: Amount | None) -> StopReason | None:
    """The reason that goes with what is missing."""
    if short is None:
        return None
    return next(REASONS[name] for name in FIELDS if of(short, name))


def wanted(state: State) -> Want | None:
    """What to ask the parent for before the next model call; None when nothing need be asked."""
    if state.tree.branch is None or state.tree.refused:
        return None
    floor, full = (call_amount(state, tokens) for tokens in (LEAST_REPLY_TOKENS, _configured(state)))
    ahead = call_amount(state, _configured(state), times=_CALLS_AHEAD)
    short, parent_could = lacking(state.tree, limits_of(state), spent(state), floor)
    if short is not None:
        return Want(need=short, wish=missing(ahead, room(state)) or short) if parent_could else None
    scant, parent_could = lacking(state.tree, limits_of(state), spent(state), full)
    if scant is None or not parent_could or state.tree.scarce:
        return None
    return Want(need=Amount(), wish=missing(ahead, room(state)) or scant)


def waits_for_children(state: State) -> bool:
    """Whether what is missing is held by the run's own children, who will give it back."""
    short = missing(call_amount(state, LEAST_REPLY_TOKENS), room(state))
    if short is None or not state.tree.children:
        return False
    alone = minus(least(limits_of(state), state.tree.lease), spent(state))
    return missing(call_amount(state, LEAST_REPLY_TOKENS), alone) is None


def next_input_tokens(state: State) -> int:
    """What the next call will read, the messages it will be the first to see included."""
    return state.context_tokens + sum(estimated_tokens(message) for message in state.inbox)


def call_amount(state: State, reply_tokens: int, times: int = 1) -> Amount:
    """What the next model call spends when its answer is so long; so many times.

    The input is reserved at its full price, as if nothing were cached: a budget is a promise.
    """
    read = max(next_input_tokens(state), 1)  # so that a budget that was passed is used up
    rates = _highest_rates(state)
    cost = None if rates is None else -(-(read * rates[0] + reply_tokens * rates[1]) // 1_000_000)
    return Amount(
        cost_microusd=None if cost is None else cost * times,
        input_tokens=read * times,
        output_tokens=reply_tokens * times,
        total_tokens=(read + reply_tokens) * times,
    )


def under_way(state: State) -> Amount:
    """What the model call under way may spend yet; nothing when there is none.

    The input may be less by now than what is reserved, and the answer shorter: that is free when it
    is there.
    """
    return call_amount(state, _configured(state)) if state.asking_model else NOTHING


def _configured(state: State) -> int:
    return state.spec.models[state.model].config.max_tokens


def allowance(state: State) -> Allowance:
    """How long the next answer may be, so that no budget is passed even if it uses all of it."""
    configured = _configured(state)
    there = room(state)
    bounds: list[tuple[int, StopReason]] = []
    if there.output_tokens is not None:
        bounds.append((there.output_tokens, "token_budget"))
    if there.total_tokens is not None:
        bounds.append((there.total_tokens - next_input_tokens(state), "token_budget"))
    affordable = _affordable_output(state, there.cost_microusd)
    if affordable is not None:
        bounds.append((affordable, "cost_budget"))
    smallest = min(bounds, default=None)
    if smallest is None or smallest[0] >= configured:
        return Allowance(max_tokens=configured)
    return Allowance(max_tokens=max(smallest[0], 0), by=smallest[1])


def _affordable_output(state: State, budget: int | None) -> int | None:
    """Output tokens that the budget still pays for; None without one."""
    rates = _highest_rates(state)
    if budget is None or rates is None:
        return None
    per_input, per_output = rates
    there = budget * 1_000_000 - next_input_tokens(state) * per_input
    return there // per_output if per_output else (2**31 if there >= 0 else 0)


def _highest_rates(state: State) -> tuple[int, int] | None:
    """Return the highest rates of the next call's input and output, or None without a price."""
    model = state.spec.models[state.model]
    if model.price is None:
        return None
    rates = model.price.rates_for(next_input_tokens(state))
    one_hour_cache = model.config.options.get("cache_ttl") == "1h"
    return rates.highest_input(one_hour_cache=one_hour_cache), rates.output
