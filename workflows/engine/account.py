"""What any run owes an account of, whatever it does: its limits, its tree, what it has used up."""

from typing import Protocol

from perdure.limits import Limits
from perdure.messages import Usage
from perdure.wire.tree import Amount

from .amounts import bounds_of, spent_of
from .tree import Tree, left


class Account(Protocol):
    """The part of a state that budgets look at."""

    @property
    def limits(self) -> Limits:
        """The run's own."""
        ...

    @property
    def tree(self) -> Tree:
        """Its parent's lease, and what its children hold."""
        ...

    @property
    def usage(self) -> Usage:
        """Its own, and that of its children that have ended."""
        ...

    @property
    def cost_microusd(self) -> int:
        """As `usage`."""
        ...

    @property
    def tool_calls(self) -> int:
        """As `usage`."""
        ...


def limits_of(account: Account) -> Amount:
    """What the run's own limits allow in all."""
    return bounds_of(account.limits)


def spent(account: Account) -> Amount:
    """What the run and those of its children that have ended have used up."""
    return spent_of(account.usage, account.cost_microusd, account.tool_calls)


def room(account: Account) -> Amount:
    """What is left: of the run's limits and of its lease, beside what its children hold."""
    return left(account.tree, limits_of(account), spent(account))
