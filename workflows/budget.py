"""Limits, as pure arithmetic: what is used up, and what the next model call may still spend."""

from dataclasses import dataclass

from perdure.messages import estimated_tokens
from perdure.wire import StopReason

from .state import State

LEAST_REPLY_TOKENS = 16
"""With less than this left for the answer, a model call is not worth its input."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the next model call may spend. `by` is the budget that made it less than configured."""

    max_tokens: int
    by: StopReason | None = None


def exhausted(state: State) -> StopReason | None:
    """The limit that forbids another model call, if one does."""
    if state.limits.steps is not None and not state.redo and state.step >= state.limits.steps:
        return "max_steps"
    limit = state.limits.input_tokens
    if limit is not None and state.usage.all_input_tokens + next_input_tokens(state) > limit:
        return "token_budget"
    granted = allowance(state)
    return granted.by if granted.max_tokens < LEAST_REPLY_TOKENS else None


def next_input_tokens(state: State) -> int:
    """What the next call will read, the messages it will be the first to see included."""
    return state.context_tokens + sum(estimated_tokens(message) for message in state.inbox)


def allowance(state: State) -> Allowance:
    """How long the next answer may be, so that no budget is passed even if it uses all of it.

    The input is reserved at its full price, as if nothing were cached: a budget is a promise.
    """
    configured = state.spec.models[state.model].config.max_tokens
    bounds: list[tuple[int, StopReason]] = []
    limits = state.limits
    if limits.output_tokens is not None:
        bounds.append((limits.output_tokens - state.usage.output_tokens, "token_budget"))
    if limits.total_tokens is not None:
        left = limits.total_tokens - state.usage.total_tokens - next_input_tokens(state)
        bounds.append((left, "token_budget"))
    affordable = _affordable_output(state)
    if affordable is not None:
        bounds.append((affordable, "cost_budget"))
    smallest = min(bounds, default=None)
    if smallest is None or smallest[0] >= configured:
        return Allowance(max_tokens=configured)
    return Allowance(max_tokens=max(smallest[0], 0), by=smallest[1])


def _affordable_output(state: State) -> int | None:
    """Output tokens that the cost budget still pays for; None without such a budget."""
    budget, price = state.limits.cost_microusd, state.spec.models[state.model].price
    if budget is None or price is None:
        return None
    reserved = next_input_tokens(state) * max(price.input, price.cache_write)
    left = (budget - state.cost_microusd) * 1_000_000 - reserved
    return left // price.output if price.output else (2**31 if left >= 0 else 0)
