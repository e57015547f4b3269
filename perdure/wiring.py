"""Wiring: the nodes and edges of a graph by name, and the checks that it can run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal, cast

Join = Literal["all", "any"] | int


def deliveries_needed(join: Join, incoming: int) -> int:
    """Return the number of deliveries that meet the join of a node with so many incoming edges."""
    match join:
        case "all":
            return incoming
        case "any":
            return 1
        case _:
            return join


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Nodes and edges of a graph, by name."""

    joins: Mapping[str, Join]
    """Join of every node."""
    edges: tuple[tuple[str, str], ...]
    """Source and target of each edge."""
    entries: tuple[str, ...]

    @property
    def sources(self) -> dict[str, list[str]]:
        """Nodes from which edges lead to a node, for each node."""
        found: dict[str, list[str]] = {name: [] for name in self.joins}
        for source, target in self.edges:
            found[target].append(source)
        return found

    @property
    def targets(self) -> dict[str, list[str]]:
        """Nodes to which edges lead from a node, for each node."""
        found: dict[str, list[str]] = {name: [] for name in self.joins}
        for source, target in self.edges:
            found[source].append(target)
        return found


def wiring_problem(wiring: Wiring, *, bounded: bool) -> str | None:
    """Return why the graph could not run and what to do, or None. A cycle needs a `bounded` run."""
    return (
        _entry_problem(wiring)
        or _edge_problem(wiring)
        or _count_problem(wiring)
        or _reach_problem(wiring)
        or (None if bounded else _cycle_problem(wiring))
        or _order_problem(wiring)
    )


def _entry_problem(wiring: Wiring) -> str | None:
    for index, entry in enumerate(wiring.entries):
        if entry not in wiring.joins:
            return f"entry {entry!r} is not one of its nodes"
        if entry in wiring.entries[:index]:
            return f"entry {entry!r} is named twice; name it once"
    return None


def _edge_problem(wiring: Wiring) -> str | None:
    seen: set[tuple[str, str]] = set()
    for source, target in wiring.edges:
        unknown = [name for name in (source, target) if name not in wiring.joins]
        if unknown:
            return f"edge {source!r} -> {target!r}: {unknown[0]!r} is not one of its nodes"
        if (source, target) in seen:
            return f"two edges lead from {source!r} to {target!r}; make them one"
        seen.add((source, target))
    return None


def _count_problem(wiring: Wiring) -> str | None:
    for name, sources in wiring.sources.items():
        join = wiring.joins[name]
        # "all" and "any" of no edges are fine: such a node is an entry, or is reported as unreachable.
        if isinstance(join, int) and join > len(sources):
            return f"join={join} of {name!r} can never be met: it has {len(sources)} incoming edges"
    return None


def _reachable(targets: Mapping[str, Sequence[str]], start: Iterable[str]) -> set[str]:
    """Return the nodes of `start` and all nodes that edges lead to from there."""
    todo = list(start)
    reached = set(todo)
    while todo:
        fresh = [name for name in targets[todo.pop()] if name not in reached]
        reached.update(fresh)
        todo.extend(fresh)
    return reached


def _reach_problem(wiring: Wiring) -> str | None:
    reached = _reachable(wiring.targets, wiring.entries)
    unreached = [name for name in wiring.joins if name not in reached]
    if not unreached:
        return None
    return f"node {unreached[0]!r} cannot be reached; lead an edge to it or make it an entry"


def _cycle_problem(wiring: Wiring) -> str | None:
    # Conditions are functions, so nobody can prove that a cycle ends.
    try:
        TopologicalSorter(wiring.sources).prepare()
    except CycleError as error:
        cycle = " -> ".join(cast("list[str]", error.args[1]))
        return f"the cycle {cycle} has no bound; set limits.max_node_executions or limits.timeout"
    return None


def _order_problem(wiring: Wiring) -> str | None:
    """Return the problem of a join that cannot be met a first time, whatever the conditions return."""
    able, targets = _runnable(wiring), wiring.targets
    for name, sources in wiring.sources.items():
        missing = [source for source in sources if source not in able]
        # Several nodes may be unable to run. The cause is a node that waits for nodes behind itself; the rest
        # only wait for that node.
        if (
            name in able
            or len(missing) == len(sources)
            or not _reachable(targets, [name]).issuperset(missing)
        ):
            continue
        after = ", ".join(repr(source) for source in missing)
        comes = "comes" if len(missing) == 1 else "come"
        return (
            f"join {wiring.joins[name]!r} of {name!r} can never be met: "
            f"{after} {comes} after it; use join='any'"
        )
    return None


def _runnable(wiring: Wiring) -> set[str]:
    """Return the nodes that can run: entries, and nodes with enough such nodes before them."""
    targets = wiring.targets
    missing = {
        name: deliveries_needed(wiring.joins[name], len(before)) for name, before in wiring.sources.items()
    }
    able, todo = set(wiring.entries), list(wiring.entries)
    while todo:
        for name in targets[todo.pop()]:
            missing[name] -= 1
            if missing[name] <= 0 and name not in able:
                able.add(name)
                todo.append(name)
    return able
