"""Progress of a graph's run, and its joins: when a node has enough arrivals to start.

Theory of operation
1. A visit is a run of a node, its retries included. A node never overlaps itself.
2. A visit has an ancestry: the newest visit of each node that led to it, through any path, and itself.
   Its output travels along an edge as an arrival, with that ancestry.
3. An edge holds a single arrival; a newer one replaces it. A visit consumes the arrivals that met its join, and
   those of the same round that came before it started.
4. An arrival at a node that has not run counts. At any other node it counts if it descends from the
   node's latest visit, or if both have an ancestor in common and the arrival has the newer visit of it.
   An arrival that does not count is late: it belongs to a round that the node has had already. So no
   node of a graph without cycles runs twice, and a vote that nobody waited for is no vote of the next
   round.
5. Arrivals at a join are of one round. The round of a visit is the part of its ancestry since the heads of the
   loops around it: a visit of a head begins a round, and forgets the nodes inside its loop (`loops.inside_loops`).
   Two arrivals are of one round if, of each node that both rounds name, both have the same visit. An arrival
   with an older visit than one that waits is late. Otherwise those that wait and have an older visit give way to
   it, and are late. A join that is met keeps its arrivals while its node cannot start yet, until a newer round
   meets it too.
6. Work from before a loop belongs to every round of it. An arrival along an edge that enters a loop
   (`loops.entering_edges`) is kept when it is consumed, and also when it is late. It is given to each later visit of
   its round. It is no news: it counts toward a join only beside an arrival that does.
7. The first visit of an entry is the beginning: it waits for nothing and consumes nothing.
8. The progress holds everything needed to go on, beside the spec and the code. Order comes from the spec's
   tuples and from the order in which nodes end, never from a hash: replay must repeat it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.messages import Message, Part
from perdure.scheduling import Over
from perdure.wire.results import NodeResult
from perdure.wire.spec import EdgeSpec, GraphSpec
from perdure.wiring import deliveries_needed

from .loops import entering_edges, inside_loops

Ancestry = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Output of a visit that travelled along an edge."""

    output: Any
    ancestry: Ancestry
    round: Ancestry = field(default_factory=dict[str, int])
    """Round of the visit; empty in a graph without loops."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Run of a node: `attempt` counts its retries."""

    node: str
    number: int
    attempt: int = 0
    prompt: str | list[Part]
    inputs: dict[str, Any]
    given: tuple[Message, ...] = ()
    """Inputs of an agent that are too long together for its prompt, a message each."""

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
    given: tuple[Message, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GraphProgress:
    """State of a graph's run: see rule 8 above."""

    task: str | list[Part]
    visits: dict[str, int]
    """Number of visits of each node, retries not counted."""
    ready: tuple[str, ...] = ()
    """Nodes whose join is met, in the order in which it was met."""
    retries: tuple[Visit, ...] = ()
    """Visits to retry; they start before the ready nodes."""
    running: tuple[Visit, ...] = ()
    arrivals: dict[str, dict[str, Arrival]] = field(default_factory=dict[str, dict[str, Arrival]])
    """Arrivals that wait for others, by node and source."""
    met: dict[str, dict[str, Arrival]] = field(default_factory=dict[str, dict[str, Arrival]])
    """Arrivals of the nodes in `ready`, by node and source. An entry's first visit has none."""
    kept: dict[str, dict[str, Arrival]] = field(default_factory=dict[str, dict[str, Arrival]])
    """Arrivals from before a loop, for the later visits of its nodes, by node and source: rule 6 above."""
    ancestry: dict[str, Ancestry] = field(default_factory=dict[str, Ancestry])
    """Ancestry of each node's latest visit."""
    rounds: dict[str, Ancestry] = field(default_factory=dict[str, Ancestry])
    """Round of each node's latest visit; empty in a graph without loops."""
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
    source, target, ancestry = edge.source, edge.target, progress.ancestry[edge.source]
    arrival = Arrival(output=output, ancestry=ancestry, round=progress.rounds.get(source, {}))
    met, waiting = progress.met.get(target, {}), progress.arrivals.get(target, {})
    kept = progress.kept.get(target, {})
    # An arrival of the same edge is replaced.
    earlier = [found for held in (met, waiting, kept) for name, found in held.items() if name != source]
    if any(_has_older_visit(arrival, found) for found in earlier):
        return _count_late(progress, target, 1)
    if not _counts(progress, spec, target, ancestry):
        return _keep_late(progress, spec, edge, arrival)
    progress = _set_kept(progress, target, _without_older(kept, source, arrival))
    if met and len(_of_round(met, source, arrival)) == len({**met, source: arrival}):
        return replace(progress, met={**progress.met, target: {**met, source: arrival}})
    fresh = _of_round(waiting, source, arrival)
    progress = _count_late(progress, target, len({**waiting, source: arrival}) - len(fresh))
    return _wait_or_meet(progress, spec, target, fresh)


def _keep_late(progress: GraphProgress, spec: GraphSpec, edge: EdgeSpec, arrival: Arrival) -> GraphProgress:
    """Return the progress after a late arrival: kept where it comes from before a loop, and given to what is met."""
    source, target = edge.source, edge.target
    if (source, target) not in entering_edges(_pairs(spec), spec.entries):
        return _count_late(progress, target, 1)
    progress = _set_kept(progress, target, {**progress.kept.get(target, {}), source: arrival})
    met = progress.met.get(target, {})
    if not met or not _joins(arrival, source, met):
        return progress
    return replace(progress, met={**progress.met, target: {**met, source: arrival}})


def _wait_or_meet(
    progress: GraphProgress, spec: GraphSpec, target: str, fresh: dict[str, Arrival]
) -> GraphProgress:
    """Return the progress with these new arrivals at the target: they wait, or its join is met."""
    kept = progress.kept.get(target, {})
    beside = {name: held for name, held in kept.items() if name not in fresh and _joins(held, name, fresh)}
    together = {**beside, **fresh}
    if len(together) < deliveries_needed(spec.node(target).join, len(incoming(spec, target))):
        return replace(progress, arrivals={**progress.arrivals, target: fresh})
    arrivals = {name: held for name, held in progress.arrivals.items() if name != target}
    ready = progress.ready if target in progress.ready else (*progress.ready, target)
    return replace(progress, arrivals=arrivals, met={**progress.met, target: together}, ready=ready)


def _joins(arrival: Arrival, source: str, held: dict[str, Arrival]) -> bool:
    """Check whether the arrival is of one round with all others, but for that of its own edge."""
    return not any(
        _has_older_visit(arrival, present) or _has_older_visit(present, arrival)
        for name, present in held.items()
        if name != source
    )


def _of_round(held: dict[str, Arrival], source: str, arrival: Arrival) -> dict[str, Arrival]:
    """Return the arrivals with the new one, without those that have an older visit: rule 5 above."""
    return {**_without_older(held, source, arrival), source: arrival}


def _without_older(held: dict[str, Arrival], source: str, arrival: Arrival) -> dict[str, Arrival]:
    return {
        name: present
        for name, present in held.items()
        if name != source and not _has_older_visit(present, arrival)
    }


def _set_kept(progress: GraphProgress, target: str, kept: dict[str, Arrival]) -> GraphProgress:
    if kept == progress.kept.get(target, {}):
        return progress
    elsewhere = {name: held for name, held in progress.kept.items() if name != target}
    return replace(progress, kept={**elsewhere, target: kept} if kept else elsewhere)


def _has_older_visit(first: Arrival, second: Arrival) -> bool:
    """Check whether the round of the first has an older visit of any node that both rounds name."""
    return any(visit < second.round.get(name, 0) for name, visit in first.round.items())


def _count_late(progress: GraphProgress, target: str, count: int) -> GraphProgress:
    if count == 0:
        return progress
    return replace(progress, late={**progress.late, target: progress.late.get(target, 0) + count})


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
    return _in_order(spec, name, progress.met.get(name, {}))


def _in_order(spec: GraphSpec, name: str, held: dict[str, Arrival]) -> dict[str, Arrival]:
    return {edge.source: held[edge.source] for edge in incoming(spec, name) if edge.source in held}


def record_visit(progress: GraphProgress, spec: GraphSpec, visit: Visit) -> GraphProgress:
    """Return the progress after the visit's first attempt started and consumed its node's arrivals."""
    met, name = dict(progress.met), visit.node
    taken = met.pop(name, {})
    consumed = tuple(taken.values())
    loops = inside_loops(_pairs(spec), spec.entries)
    rounds = progress.rounds
    if loops:
        since_head = _merge(arrival.round for arrival in consumed)
        inside = loops.get(name, frozenset())
        since_head = {node: number for node, number in since_head.items() if node not in inside}
        rounds = {**rounds, name: {**since_head, name: visit.number}}
        entering = entering_edges(_pairs(spec), spec.entries)
        # What is kept already may have come after the join was met.
        before = {source: arrival for source, arrival in taken.items() if (source, name) in entering}
        progress = _set_kept(progress, name, {**before, **progress.kept.get(name, {})})
    ancestry = {**_merge(arrival.ancestry for arrival in consumed), name: visit.number}
    return replace(
        progress,
        ready=tuple(node for node in progress.ready if node != name),
        met=met,
        visits={**progress.visits, name: visit.number},
        ancestry={**progress.ancestry, name: ancestry},
        rounds=rounds,
    )


def _merge(ancestries: Iterable[Ancestry]) -> Ancestry:
    """Return the newest visit of each node."""
    merged: Ancestry = {}
    for ancestry in ancestries:
        for name, number in ancestry.items():
            merged[name] = max(number, merged.get(name, 0))
    return merged


def _pairs(spec: GraphSpec) -> tuple[tuple[str, str], ...]:
    return tuple((edge.source, edge.target) for edge in spec.edges)


def is_stuck(progress: GraphProgress, spec: GraphSpec) -> bool:
    """Check whether joins wait for arrivals that nothing will bring, and the graph has nothing to show for them.

    A node that has never run leaves the graph stuck if no output came out at all. A node that waits for another visit
    does if no output came out of the round of what waits, or of a later one.
    """
    if progress.arrivals and not progress.outputs:
        return True
    heads = inside_loops(_pairs(spec), spec.entries)
    return any(
        not _came_out(progress, {head: number for head, number in arrival.round.items() if head in heads})
        for name, waiting in progress.arrivals.items()
        if progress.visits[name] > 0
        for arrival in waiting.values()
    )


def _came_out(progress: GraphProgress, heads: Ancestry) -> bool:
    """Check whether an output descends from these visits of the loops' heads, or from later ones."""
    return any(
        all(progress.ancestry[name].get(head, 0) >= number for head, number in heads.items())
        for name in progress.outputs
    )


def unmet(progress: GraphProgress, spec: GraphSpec) -> dict[str, str]:
    """Return the nodes that never ran, and those that wait for another visit, each with the reason."""
    return {
        node.name: _why_unmet(progress, spec, node.name)
        for node in spec.nodes
        if progress.visits[node.name] == 0 or node.name in progress.arrivals
    }


def _why_unmet(progress: GraphProgress, spec: GraphSpec, name: str) -> str:
    visits = progress.visits[name]
    earlier = f"it ran {visits} time{'s' if visits > 1 else ''}, and then: " if visits else ""
    if name in progress.ready:
        again = " again" if visits else ""
        return f"it could have run{again}, but the graph ended first"
    return earlier + _why_waiting(progress, spec, name)


def _why_waiting(progress: GraphProgress, spec: GraphSpec, name: str) -> str:
    held = {**progress.kept.get(name, {}), **progress.arrivals.get(name, {})}
    arrivals = _in_order(spec, name, held)
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
    late = progress.late.get(name, 0)
    earlier = f"; {late} of an earlier round came too late" if late else ""
    return (
        f"{len(arrivals)} of {needed} edges arrived: {', '.join(arrivals)}; nothing from {nothing}{earlier}"
    )


def _was_skipped(progress: GraphProgress, name: str) -> bool:
    result = progress.results.get(name)
    return result is not None and result.state == "skipped"
