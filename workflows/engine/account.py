"""Account of a run, whatever its program: its limits, its lease, and what it has spent."""

from perdure.wire.tree import Amount

from .amounts import bounds_of, spent_of
from .state import RunState
from .tree import remaining_amount


def limits_of(state: RunState) -> Amount:
    """Return the amount that the run's own limits allow in all."""
    return bounds_of(state.limits)


def spent(state: RunState) -> Amount:
    """Return the amount that the run and its ended children have spent."""
    ledger = state.ledger
    return spent_of(ledger.usage, ledger.cost_microusd, ledger.tool_calls, ledger.per_tool)


def room(state: RunState) -> Amount:
    """Return what is left of the limits and the lease, without what the children hold."""
    return remaining_amount(state.tree, limits_of(state), spent(state))


def bounded_calls(state: RunState) -> dict[str, int]:
    """Return the calls of the tools that the run's limits or its lease bound, for who counts them above."""
    bounded = {*state.limits.per_tool, *state.tree.lease.amount.per_tool}
    return {name: calls for name, calls in state.ledger.per_tool.items() if name in bounded}
