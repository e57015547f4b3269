"""Arithmetic of amounts. None is no bound: nothing is taken from it, and nothing makes it more."""

from typing import Final

from perdure.limits import Limits
from perdure.messages import Usage
from perdure.wire.results import StopReason
from perdure.wire.tree import Amount

FIELDS: Final = ("cost_microusd", "input_tokens", "output_tokens", "total_tokens", "tool_calls")

REASONS: Final[dict[str, StopReason]] = {
    "cost_microusd": "cost_budget",
    "input_tokens": "token_budget",
    "output_tokens": "token_budget",
    "total_tokens": "token_budget",
    "tool_calls": "max_tool_calls",
}
NOTHING: Final = Amount(cost_microusd=0, input_tokens=0, output_tokens=0, total_tokens=0, tool_calls=0)


def of(amount: Amount, field: str) -> int | None:
    """One field of the amount."""
    value: int | None = getattr(amount, field)
    return value


def bounds_of(limits: Limits) -> Amount:
    """What the limits allow in all."""
    return Amount(
        cost_microusd=limits.cost_microusd,
        input_tokens=limits.input_tokens,
        output_tokens=limits.output_tokens,
        total_tokens=limits.total_tokens,
        tool_calls=limits.tool_calls,
    )


def spent_of(usage: Usage, cost_microusd: int, tool_calls: int) -> Amount:
    """What was used up, as an amount without None."""
    return Amount(
        cost_microusd=cost_microusd,
        input_tokens=usage.all_input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        tool_calls=tool_calls,
    )


def minus(amount: Amount, *taken: Amount) -> Amount:
    """What is left; never less than nothing."""
    values = {
        name: max(there - sum(of(one, name) or 0 for one in taken), 0)
        for name in FIELDS
        if (there := of(amount, name)) is not None
    }
    return Amount(**values)


def plus(amount: Amount, *added: Amount) -> Amount:
    """The sum; what has no bound keeps none."""
    values = {
        name: there + sum(of(one, name) or 0 for one in added)
        for name in FIELDS
        if (there := of(amount, name)) is not None
    }
    return Amount(**values)


def least(one: Amount, other: Amount) -> Amount:
    """The smaller of the two, field by field."""
    values = {name: _smaller(of(one, name), of(other, name)) for name in FIELDS}
    return Amount(**values)


def missing(wanted: Amount, there: Amount) -> Amount | None:
    """How much more than what is there is wanted; None when it suffices."""
    short = {
        name: want - have
        for name in FIELDS
        if (want := of(wanted, name)) is not None and (have := of(there, name)) is not None and want > have
    }
    return Amount(**short) if short else None


def share(amount: Amount, parts: int) -> Amount:
    """One of so many equal parts."""
    values = {name: there // max(parts, 1) for name in FIELDS if (there := of(amount, name)) is not None}
    return Amount(**values)


def between(low: Amount, wish: Amount, high: Amount) -> Amount:
    """The wish, but no more than `high`, and no less than `low`; only what is wished for."""
    values = {
        name: max(of(low, name) or 0, _smaller(want, of(high, name)) or 0)
        for name in FIELDS
        if (want := of(wish, name)) is not None
    }
    return Amount(**values)


def is_bounded(amount: Amount) -> bool:
    """Whether anything of it has a bound."""
    return any(of(amount, name) is not None for name in FIELDS)


def is_something(amount: Amount) -> bool:
    """Whether any field of it is more than nothing."""
    return any((of(amount, name) or 0) > 0 for name in FIELDS)


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((bound for bound in (one, other) if bound is not None), default=None)
