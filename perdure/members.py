"""What agents, swarms and graphs have in common: each can be run, by itself or as part of another."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Protocol, runtime_checkable

from perdure.errors import DefinitionError
from perdure.prices import PriceTable
from perdure.wire.spec import AgentSpec, GraphSpec, ResolvedAgent, SwarmSpec


@runtime_checkable
class Member(Protocol):
    """An Agent, Swarm or Graph."""

    @property
    def name(self) -> str:
        """By which it is started; unique among all that belong together."""
        ...

    @property
    def description(self) -> str:
        """What it is good for, for other agents."""
        ...

    @property
    def members(self) -> "Mapping[str, Member]":
        """Whom it runs itself, by name."""
        ...

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> AgentSpec | SwarmSpec | GraphSpec:
        """It as data."""
        ...


def collect_members(*roots: Member) -> dict[str, Any]:
    """All of them and whom they run, directly or through others, by name; the nearest first.

    Raises:
        DefinitionError: two different ones of one name.

    """
    found: dict[str, Member] = {}
    coming: list[Member] = list(roots)
    while coming:
        member = coming.pop(0)
        known = found.get(member.name)
        if known is member:
            continue
        if known is not None:
            raise DefinitionError(
                f"two different agents, swarms or graphs are called {member.name!r}; rename one"
            )
        found[member.name] = member
        coming.extend(member.members.values())
    return found


def resolve_member(
    member: Member, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
) -> ResolvedAgent:
    """It and all whom it may run, as data, with the prices of the day.

    Raises:
        DefinitionError: a cost limit, but a model whose price is not known.

    """
    everyone: Iterable[Member] = collect_members(member).values()
    spec = member.spec(prices=prices, today=today, cost_limited=cost_limited)
    limited = cost_limited or spec.limits.cost_usd is not None
    others = [
        one.spec(prices=prices, today=today, cost_limited=limited) for one in everyone if one is not member
    ]
    return ResolvedAgent(spec=spec, members=tuple(others))


def for_member(found: ResolvedAgent, name: str) -> ResolvedAgent | None:
    """What was resolved for one of its members: that one's spec, and the same company."""
    specs = {spec.name: spec for spec in (found.spec, *found.members)}
    spec = specs.get(name)
    if spec is None:
        return None
    others = tuple(one for one in specs.values() if one.name != name)
    return found.model_copy(update={"spec": spec, "members": others})
