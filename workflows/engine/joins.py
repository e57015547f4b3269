"""What a graph's run knows, and when a node has been brought enough to start.

Theory of operation
1. A visit is one run of a node, its retries included. A node never overlaps itself.
2. A visit knows its ancestry: of every node it came from, through any path, the newest visit; and
   itself. What it brings to a node along an edge, an arrival, bears that ancestry.
3. An edge holds one arrival; a newer one takes its place. A visit takes all that its node holds.
4. An arrival counts at a node that has not run; else when it comes from the node's own latest visit,
   or shares an ancestor with it and has the newer one. What does not count is late: it belongs to a
   round that the node has had already. So without a cycle nothing runs twice, and a vote that nobody
   waited for is not a vote of the next round.
5. An entry's first visit is the beginning: it waits for nothing and takes nothing.
6. Everything needed to go on, beside the spec and the code, is in the plan. Order comes from
   the spec's tuples and from the order of ends, never from a hash.
"""

from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.messages import Part
from perdure.wire.results import NodeResult
from perdure.wire.spec import EdgeSpec, GraphSpec
from perdure.wiring import deliveries_needed

from .scheduler import Over

Ancestry = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What a visit brought along an edge."""

    output: Any
    ancestry: Ancestry


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A run of a node: `attempt` counts its retries."""

    node: str
    number: int
    attempt: int = 0
    prompt: str | list[Part]
    inputs: dict[str, Any]

    @property
    def key(self) -> str:
        """Unique in the run."""
        return f"{self.node}-{self.number}" + (f".{self.attempt}" if self.attempt else "")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What an agent was asked in an earlier visit, and what it answered."""

    prompt: str | list[Part]
    answer: str


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """Everything a graph's run knows. See the rules above."""

    task: str | list[Part]
    visits: dict[str, int]
    """Of every node, how often it was started, retries not counted."""
    ready: tuple[str, ...] = ()
    """Nodes whose join is met, in the order in which that came about."""
    retries: tuple[Visit, ...] = ()
    """Visits to be tried again; they go before what is ready."""
    running: tuple[Visit, ...] = ()
    arrivals: dict[str, dict[str, Arrival]] = field(default_factory=dict[str, dict[str, Arrival]])
    """What each node holds and has not started with: by node, by source."""
    ancestry: dict[str, Ancestry] = field(default_factory=dict[str, Ancestry])
    """Of each node's latest visit."""
    results: dict[str, NodeResult] = field(default_factory=dict[str, NodeResult])
    """Of each node's latest finished visit."""
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    """What nodes that lead nowhere gave last."""
    latest: Any = None
    """What the node that finished last gave."""
    memory: dict[str, tuple[Exchange, ...]] = field(default_factory=dict[str, tuple[Exchange, ...]])
    """Of agents that remember earlier visits."""
    late: dict[str, int] = field(default_factory=dict[str, int])
    """Of each node, arrivals that did not count."""
    executions: int = 0
    """Runs started, retries included."""
    end: Over | None = None
    """Set when it failed; its output and what becomes of those that run are not decided yet."""


def incoming(spec: GraphSpec, name: str) -> list[EdgeSpec]:
    """The edges that lead to the node, in the order of the spec."""
    return [edge for edge in spec.edges if edge.target == name]


def outgoing(spec: GraphSpec, name: str) -> list[EdgeSpec]:
    """The edges that lead from the node, in the order of the spec."""
    return [edge for edge in spec.edges if edge.source == name]


def has_cycle(spec: GraphSpec) -> bool:
    """Whether any node may be visited twice."""
    sorter = TopologicalSorter[str]()
    for edge in spec.edges:
        sorter.add(edge.target, edge.source)
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False


def arrived(plan: GraphPlan, spec: GraphSpec, edge: EdgeSpec, output: Any) -> GraphPlan:
    """The plan after the latest visit of the edge's source brought its output along it."""
    target, ancestry = edge.target, plan.ancestry[edge.source]
    if not _counts(plan, spec, target, ancestry):
        return replace(plan, late={**plan.late, target: plan.late.get(target, 0) + 1})
    there = {**plan.arrivals.get(target, {}), edge.source: Arrival(output=output, ancestry=ancestry)}
    plan = replace(plan, arrivals={**plan.arrivals, target: there})
    needed = deliveries_needed(spec.node(target).join, len(incoming(spec, target)))
    if target in plan.ready or len(there) < needed:
        return plan
    return replace(plan, ready=(*plan.ready, target))


def _counts(plan: GraphPlan, spec: GraphSpec, target: str, ancestry: Ancestry) -> bool:
    visits = plan.visits[target]
    if visits == 0:
        return target not in spec.entries
    if ancestry.get(target, 0) == visits:
        return True
    last = plan.ancestry[target]
    return any(visit > last[name] for name, visit in ancestry.items() if name in last)


def held(plan: GraphPlan, spec: GraphSpec, name: str) -> dict[str, Arrival]:
    """What the node would start with, in the order of its edges."""
    there = plan.arrivals.get(name, {})
    return {edge.source: there[edge.source] for edge in incoming(spec, name) if edge.source in there}


def visited(plan: GraphPlan, visit: Visit) -> GraphPlan:
    """The plan after a first attempt of the visit was started: it has taken what its node held."""
    arrivals = dict(plan.arrivals)
    ancestry: Ancestry = {}
    for arrival in arrivals.pop(visit.node, {}).values():
        for name, number in arrival.ancestry.items():
            ancestry[name] = max(number, ancestry.get(name, 0))
    ancestry[visit.node] = visit.number
    return replace(
        plan,
        ready=tuple(name for name in plan.ready if name != visit.node),
        arrivals=arrivals,
        visits={**plan.visits, visit.node: visit.number},
        ancestry={**plan.ancestry, visit.node: ancestry},
    )


def unmet(plan: GraphPlan, spec: GraphSpec) -> dict[str, str]:
    """The nodes that never ran, and why."""
    return {
        node.name: _why_unmet(plan, spec, node.name) for node in spec.nodes if plan.visits[node.name] == 0
    }


def _why_unmet(plan: GraphPlan, spec: GraphSpec, name: str) -> str:
    if name in plan.ready:
        return "it could have run, but the graph ended first"
    there = held(plan, spec, name)
    sources = [edge.source for edge in incoming(spec, name)]
    missing = [source for source in sources if source not in there]
    if not there:
        skipped = [source for source in missing if _skipped(plan, source)]
        why = f": {', '.join(skipped)} skipped" if skipped else ""
        return f"no edge to it was taken{why}"
    nothing = ", ".join(f"{source} (skipped)" if _skipped(plan, source) else source for source in missing)
    most = deliveries_needed(spec.node(name).join, len(sources))
    return f"{len(there)} of {most} edges arrived: {', '.join(there)}; nothing from {nothing}"


def _skipped(plan: GraphPlan, name: str) -> bool:
    result = plan.results.get(name)
    return result is not None and result.state == "skipped"
