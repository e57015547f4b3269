"""Progress of a graph's run, and its joins: when a node has enough arrivals to start.

Theory of operation
1. A visit is a run of a node, its retries included. A node never overlaps itself.
2. A visit has an ancestry: the newest visit of each node that led to it, through any path, and itself.
   Its output travels along an edge as an arrival, with that ancestry.
3. An edge holds a single arrival; a newer one replaces it. A visit consumes all arrivals of its node.
4. An arrival at a node that has not run counts. At any other node it counts if it descends from the
   node's latest visit, or if both have an ancestor in common and the arrival has the newer visit of it.
   An arrival that does not count is late: it belongs to a round that the node has had already. So no
   node of a graph without cycles runs twice, and a vote that nobody waited for is no vote of the next
   round.
5. The first visit of an entry is the beginning: it waits for nothing and consumes nothing.
6. The progress holds everything needed to go on, beside the spec and the code. Order comes from the spec's
   tuples and from the order in which nodes end, never from a hash: replay must repeat it.
"""

from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.messages import Part
from perdure.scheduling import Over
from perdure.wire.results import NodeResult
from perdure.wire.spec import EdgeSpec, GraphSpec
from perdure.wiring import deliveries_needed

Ancestry = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Output of a visit that travelled along an edge."""

    output: Any
    ancestry: Ancestry


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Run of a node: `attempt` counts its retries."""

    node: str
    number: int
    attempt: int = 0
    prompt: str | list[Part]
    inputs: dict[str, Any]

    @property
    def key(self) -> str:
        """Key of this attempt, unique in the run: "node-2", or "node-2.1" for its first retry."""
        return self.first_key + (f".{self.attempt}" if self.attempt else "")

    @property
    def first_key(self) -> str:
        """Key of the first attempt."""
        return f"{self.node}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Prompt and answer of an agent's earlier visit."""

    prompt: str | list[Part]
    answer: str


@dataclass(frozen=True, kw_only=True)
class GraphProgress:
    """State of a graph's run: see rule 6 above."""

    task: str | list[Part]
    visits: dict[str, int]
    """Number of visits of each node, retries not counted."""
    ready: tuple[str, ...] = ()
    """Nodes whose join is met, in the order in which it was met."""
    retries: tuple[Visit, ...] = ()
    """Visits to retry; they start before the ready nodes."""
    running: tuple[Visit, ...] = ()
    arrivals: dict[str, dict[str, Arrival]] = field(default_factory=dict[str, dict[str, Arrival]])
    """Arrivals that no visit has consumed yet, by node and source."""
    ancestry: dict[str, Ancestry] = field(default_factory=dict[str, Ancestry])
    """Ancestry of each node's latest visit."""
    results: dict[str, NodeResult] = field(default_factory=dict[str, NodeResult])
    """Result of each node's latest finished visit."""
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Latest output of each node without outgoing edges."""
    latest: Any = None
    """Output of the node that finished last."""
    memory: dict[str, tuple[Exchange, ...]] = field(default_factory=dict[str, tuple[Exchange, ...]])
    """Earlier visits of the agents that remember them."""
    late: dict[str, int] = field(default_factory=dict[str, int])
    """Number of late arrivals of each node."""
    executions: int = 0
    """Number of runs started, retries included."""
    end: Over | None = None
    """End of a failed graph, still without its output and without a decision on running siblings."""


def incoming(spec: GraphSpec, name: str) -> list[EdgeSpec]:
    """Return the edges that lead to the node, in the order of the spec."""
    return [edge for edge in spec.edges if edge.target == name]


def outgoing(spec: GraphSpec, name: str) -> list[EdgeSpec]:
    """Return the edges that lead from the node, in the order of the spec."""
    return [edge for edge in spec.edges if edge.source == name]


def has_cycle(spec: GraphSpec) -> bool:
    """Check whether any node may be visited twice."""
    # The sorter raises on a cycle when it prepares; its order is not used.
    sorter = TopologicalSorter[str]()
    for edge in spec.edges:
        sorter.add(edge.target, edge.source)
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False


def add_arrival(progress: GraphProgress, spec: GraphSpec, edge: EdgeSpec, output: Any) -> GraphProgress:
    """Return the progress after the output of the source's latest visit travelled along the edge."""
    # Read when the edge is followed, before the source can be visited again.
    target, ancestry = edge.target, progress.ancestry[edge.source]
    if not _counts(progress, spec, target, ancestry):
        return replace(progress, late={**progress.late, target: progress.late.get(target, 0) + 1})
    arrivals = {**progress.arrivals.get(target, {}), edge.source: Arrival(output=output, ancestry=ancestry)}
    progress = replace(progress, arrivals={**progress.arrivals, target: arrivals})
    needed = deliveries_needed(spec.node(target).join, len(incoming(spec, target)))
    if target in progress.ready or len(arrivals) < needed:
        return progress
    return replace(progress, ready=(*progress.ready, target))


def _counts(progress: GraphProgress, spec: GraphSpec, target: str, ancestry: Ancestry) -> bool:
    """Check whether an arrival with this ancestry counts at the target: rule 4 above."""
    visits = progress.visits[target]
    if visits == 0:
        # An entry that has not started yet will: its first visit waits for no arrival.
        return target not in spec.entries
    if ancestry.get(target, 0) == visits:
        return True
    last = progress.ancestry[target]
    return any(visit > last[name] for name, visit in ancestry.items() if name in last)


def arrivals_at(progress: GraphProgress, spec: GraphSpec, name: str) -> dict[str, Arrival]:
    """Return the arrivals that the node's next visit would consume, in the order of its edges."""
    arrivals = progress.arrivals.get(name, {})
    return {edge.source: arrivals[edge.source] for edge in incoming(spec, name) if edge.source in arrivals}


def record_visit(progress: GraphProgress, visit: Visit) -> GraphProgress:
    """Return the progress after the visit's first attempt started and consumed its node's arrivals."""
    arrivals = dict(progress.arrivals)
    ancestry: Ancestry = {}
    for arrival in arrivals.pop(visit.node, {}).values():
        for name, number in arrival.ancestry.items():
            ancestry[name] = max(number, ancestry.get(name, 0))
    ancestry[visit.node] = visit.number
    return replace(
        progress,
        ready=tuple(name for name in progress.ready if name != visit.node),
        arrivals=arrivals,
        visits={**progress.visits, visit.node: visit.number},
        ancestry={**progress.ancestry, visit.node: ancestry},
    )


def unmet(progress: GraphProgress, spec: GraphSpec) -> dict[str, str]:
    """Return the nodes that never ran, each with the reason."""
    return {
        node.name: _why_unmet(progress, spec, node.name)
        for node in spec.nodes
        if progress.visits[node.name] == 0
    }


def _why_unmet(progress: GraphProgress, spec: GraphSpec, name: str) -> str:
    if name in progress.ready:
        return "it could have run, but the graph ended first"
    arrivals = arrivals_at(progress, spec, name)
    sources = [edge.source for edge in incoming(spec, name)]
    missing = [source for source in sources if source not in arrivals]
    if not arrivals:
        skipped = [source for source in missing if _was_skipped(progress, source)]
        why = f": {', '.join(skipped)} skipped" if skipped else ""
        return f"no edge to it was taken{why}"
    nothing = ", ".join(
        f"{source} (skipped)" if _was_skipped(progress, source) else source for source in missing
    )
    needed = deliveries_needed(spec.node(name).join, len(sources))
    return f"{len(arrivals)} of {needed} edges arrived: {', '.join(arrivals)}; nothing from {nothing}"


def _was_skipped(progress: GraphProgress, name: str) -> bool:
    result = progress.results.get(name)
    return result is not None and result.state == "skipped"
