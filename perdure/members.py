"""Members: agents, swarms, graphs and patterns, each of which runs by itself or as part of another."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Protocol, runtime_checkable

from perdure.errors import DefinitionError
from perdure.limits import Limits
from perdure.mcp import may_be_tool_of
from perdure.prices import PriceTable
from perdure.wire.spec import AgentSpec, AnySpec, ResolvedAgent


# A protocol and no base class: agents, swarms and graphs import this module.
@runtime_checkable
class Member(Protocol):
    """An Agent, Swarm, Graph or Pattern."""

    @property
    def name(self) -> str:
        """Name under which it is started, unique among the members of a run."""
        ...

    @property
    def description(self) -> str:
        """Purpose of it, for other agents."""
        ...

    @property
    def members(self) -> "Mapping[str, Member]":
        """Members that it runs directly, by name."""
        ...

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> AnySpec:
        """Return it as data, with the prices of the day."""
        ...


def collect_members(*roots: Member) -> dict[str, Any]:
    """Return the roots and all members below them, by name, the nearest first.

    Raises:
        DefinitionError: two different members have the same name.

    """
    found: dict[str, Member] = {}
    queue: list[Member] = list(roots)
    while queue:
        member = queue.pop(0)
        known = found.get(member.name)
        # A member may be reached in several ways, and by a circle of agents that call each other.
        if known is member:
            continue
        if known is not None:
            raise DefinitionError(
                f"two different agents, swarms, graphs or patterns are called {member.name!r}; rename one"
            )
        found[member.name] = member
        queue.extend(member.members.values())
    return found


def resolve_member(
    member: Member, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
) -> ResolvedAgent:
    """Return the member and all members below it as data, with the prices of the day.

    Raises:
        DefinitionError: the cost is bounded, and the price of a model is not known.

    """
    family: Iterable[Member] = collect_members(member).values()
    spec = member.spec(prices=prices, today=today, cost_limited=cost_limited)
    limited = cost_limited or spec.limits.cost_usd is not None
    # A limit of the root bounds what is below it, so the prices there must be known as well.
    below = [
        relative.spec(prices=prices, today=today, cost_limited=limited)
        for relative in family
        if relative is not member
    ]
    return ResolvedAgent(spec=spec, members=tuple(below))


def unknown_tool_limit(limits: Limits, members: Iterable[Member]) -> str | None:
    """Return a name of `limits.per_tool` that no agent among the members, or below them, has as a tool."""
    family = collect_members(*members).values()
    tools = [tool for member in family for tool in getattr(member, "tools", ())]
    return next((name for name in sorted(limits.per_tool) if not may_be_tool_of(tools, name)), None)


def tool_names(resolved: ResolvedAgent) -> set[str]:
    """Return the names of all tools that a run, or one below it, may call."""
    agents = [spec for spec in (resolved.spec, *resolved.members) if isinstance(spec, AgentSpec)]
    return {tool.name for spec in agents for tool in spec.tools}


def for_member(resolved: ResolvedAgent, name: str) -> ResolvedAgent | None:
    """Return what a child run of that member is given: its spec, and the specs of all the rest."""
    # Names are unique in a run: `collect_members` has checked that.
    specs = {spec.name: spec for spec in (resolved.spec, *resolved.members)}
    spec = specs.get(name)
    if spec is None:
        return None
    rest = tuple(member for member in specs.values() if member.name != name)
    return resolved.model_copy(update={"spec": spec, "members": rest})
