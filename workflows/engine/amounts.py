"""Arithmetic of amounts, field by field, and tool by tool.

None is "no bound": it stays None whatever is added or taken away. A tool that is not named in `per_tool` has no
bound either.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from perdure.limits import Limits
from perdure.messages import Usage
from perdure.wire.results import StopReason
from perdure.wire.tree import Amount

FIELDS: Final = ("cost_microusd", "input_tokens", "output_tokens", "total_tokens", "tool_calls")
_TOOL: Final = "tool "
"""Beginning of the field of a tool: "tool refund" is the bound of calls of `refund`."""

REASONS: Final[dict[str, StopReason]] = {
    "cost_microusd": "cost_budget",
    "input_tokens": "token_budget",
    "output_tokens": "token_budget",
    "total_tokens": "token_budget",
    "tool_calls": "max_tool_calls",
}
NOTHING: Final = Amount(cost_microusd=0, input_tokens=0, output_tokens=0, total_tokens=0, tool_calls=0)


def reason_of(field: str) -> StopReason:
    """Return the stop reason of a run that lacks this field."""
    return "max_tool_calls" if field.startswith(_TOOL) else REASONS[field]


def fields_of(*amounts: Amount) -> list[str]:
    """Return the fields of these amounts: the common ones, then those of the tools that any of them names."""
    tools = sorted({name for amount in amounts for name in amount.per_tool})
    return [*FIELDS, *(_TOOL + name for name in tools)]


def of(amount: Amount, field: str) -> int | None:
    """Return the amount's value of that field; None where it has no bound."""
    if field.startswith(_TOOL):
        return amount.per_tool.get(field.removeprefix(_TOOL))
    value: int | None = getattr(amount, field)
    return value


def _amount(values: Mapping[str, int | None]) -> Amount:
    per_tool = {
        field.removeprefix(_TOOL): value
        for field, value in values.items()
        if field.startswith(_TOOL) and value is not None
    }
    common = {field: value for field, value in values.items() if not field.startswith(_TOOL)}
    return Amount.model_validate({**common, "per_tool": per_tool})


def share_of(amount: Amount, share: float) -> Amount:
    """Return that share of each bound on tokens and money, rounded down; calls of tools have none."""
    values = {field: of(amount, field) for field in FIELDS if field != "tool_calls"}
    shares = {field: None if value is None else int(value * share) for field, value in values.items()}
    return _amount(shares)


def bounds_of(limits: Limits) -> Amount:
    """Return the most that the limits allow in all."""
    return Amount(
        cost_microusd=limits.cost_microusd,
        input_tokens=limits.input_tokens,
        output_tokens=limits.output_tokens,
        total_tokens=limits.total_tokens,
        tool_calls=limits.tool_calls,
        per_tool=limits.per_tool,
    )


def spent_of(usage: Usage, cost_microusd: int, tool_calls: int, per_tool: Mapping[str, int]) -> Amount:
    """Return the usage as an amount, in which every field has a value."""
    return Amount(
        cost_microusd=cost_microusd,
        input_tokens=usage.all_input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        tool_calls=tool_calls,
        per_tool=dict(per_tool),
    )


def usage_since(usage: Usage, before: Usage, *, estimated: bool) -> Usage:
    """Return the usage since an earlier count, never below zero.

    Below zero happens: what was not heard of was booked with all that it might have been.
    """
    return Usage(
        input_tokens=max(usage.input_tokens - before.input_tokens, 0),
        cache_read_tokens=max(usage.cache_read_tokens - before.cache_read_tokens, 0),
        cache_write_tokens=max(usage.cache_write_tokens - before.cache_write_tokens, 0),
        cache_write_1h_tokens=max(usage.cache_write_1h_tokens - before.cache_write_1h_tokens, 0),
        output_tokens=max(usage.output_tokens - before.output_tokens, 0),
        estimated=estimated,
    )


def sum_by_tool(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of counts of calls, by tool."""
    names = sorted({name for calls in counts for name in calls})
    return {name: sum(calls.get(name, 0) for calls in counts) for name in names}


def calls_of(name: str) -> Amount:
    """Return the amount of one call of a tool."""
    return Amount(tool_calls=1, per_tool={name: 1})


def minus(amount: Amount, *taken: Amount) -> Amount:
    """Return the rest of the amount, never below zero."""
    # Below zero happens: a model call may cost more than its reservation.
    return _amount(
        {
            name: max(bound - sum(of(part, name) or 0 for part in taken), 0)
            for name in fields_of(amount)
            if (bound := of(amount, name)) is not None
        }
    )


def plus(amount: Amount, *added: Amount) -> Amount:
    """Return the sum; a field without a bound in the first amount stays without."""
    return _amount(
        {
            name: bound + sum(of(part, name) or 0 for part in added)
            for name in fields_of(amount)
            if (bound := of(amount, name)) is not None
        }
    )


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum of the amounts, in which every field has a value."""
    parts = tuple(amounts)
    return _amount({name: sum(of(part, name) or 0 for part in parts) for name in fields_of(*parts)})


def least(first: Amount, second: Amount) -> Amount:
    """Return the smaller value of each field, where None is larger than any value."""
    return _amount({name: _smaller(of(first, name), of(second, name)) for name in fields_of(first, second)})


def at_most(amount: Amount, bounds: Amount) -> Amount:
    """Return the amount, in each field at most the bound; without the fields that have no bound."""
    return _amount(
        {
            name: min(value, bound)
            for name in fields_of(amount)
            if (value := of(amount, name)) is not None and (bound := of(bounds, name)) is not None
        }
    )


def missing(wanted: Amount, available: Amount) -> Amount | None:
    """Return how much `available` falls short of `wanted`, or None when it suffices."""
    short: dict[str, int | None] = {
        name: want - have
        for name in fields_of(wanted)
        if (want := of(wanted, name)) is not None
        and (have := of(available, name)) is not None
        and want > have
    }
    return _amount(short) if short else None


def share(amount: Amount, parts: int) -> Amount:
    """Return one of `parts` equal parts, rounded down."""
    # Rounded down, so that the parts never add up to more than the amount.
    return _amount(
        {
            name: bound // max(parts, 1)
            for name in fields_of(amount)
            if (bound := of(amount, name)) is not None
        }
    )


def between(low: Amount, preferred: Amount, high: Amount) -> Amount:
    """Return the preferred amount, at most `high` and at least `low`; only fields that it bounds."""
    # Only fields that are short are asked for. None, for the others, adds nothing to a lease.
    return _amount(
        {
            name: max(of(low, name) or 0, _smaller(want, of(high, name)) or 0)
            for name in fields_of(preferred)
            if (want := of(preferred, name)) is not None
        }
    )


def is_bounded(amount: Amount) -> bool:
    """Check whether any field has a bound."""
    return any(of(amount, name) is not None for name in fields_of(amount))


def is_something(amount: Amount) -> bool:
    """Check whether any field is more than zero."""
    return any((of(amount, name) or 0) > 0 for name in fields_of(amount))


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((bound for bound in (first, second) if bound is not None), default=None)
