"""Loops of a graph: their heads, and what lies inside them. Pure, and the same for every run of a graph."""

from collections.abc import Iterable
from functools import lru_cache

Pairs = tuple[tuple[str, str], ...]
"""Source and target of each edge."""


@lru_cache(maxsize=256)
def inside_loops(edges: Pairs, entries: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Return the nodes inside the loop of each head: those that every round of the loop visits anew.

    A loop is a largest set of nodes that lead to each other. Its heads are the nodes by which it is entered: entries
    of the graph, and targets of edges from outside. Without the edges to its heads, smaller loops may be left in it:
    these have heads of their own, and lie inside.
    """
    found: dict[str, frozenset[str]] = {}
    for body in _bodies(_reachable(edges)):
        heads = _heads(edges, entries, body)
        found.update(dict.fromkeys(sorted(heads), body - heads))
        found.update(inside_loops(_without_heads(edges, entries, body), ()))
    return found


@lru_cache(maxsize=256)
def entering_edges(edges: Pairs, entries: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """Return the edges that enter a loop: they lead to a node of it from a node that is none of the loop's."""
    found: set[tuple[str, str]] = set()
    for body in _bodies(_reachable(edges)):
        found.update((source, target) for source, target in edges if target in body and source not in body)
        found.update(entering_edges(_without_heads(edges, entries, body), ()))
    return frozenset(found)


def _heads(edges: Pairs, entries: tuple[str, ...], body: frozenset[str]) -> frozenset[str]:
    entered = {target for source, target in edges if target in body and source not in body}
    return body.intersection(entered.union(entries))


def _without_heads(edges: Pairs, entries: tuple[str, ...], body: frozenset[str]) -> Pairs:
    """Return the edges inside the loop, without those to its heads: only smaller loops are left in them."""
    heads = _heads(edges, entries, body)
    return tuple(
        (source, target)
        for source, target in edges
        if source in body and target in body and target not in heads
    )


def _reachable(edges: Pairs) -> dict[str, set[str]]:
    """Return, for each source, the nodes that one edge or more leads to."""
    targets: dict[str, list[str]] = {}
    for source, target in edges:
        targets.setdefault(source, []).append(target)
    after: dict[str, set[str]] = {}
    for name, first in targets.items():
        reached: set[str] = set()
        todo = list(first)
        while todo:
            node = todo.pop()
            if node not in reached:
                reached.add(node)
                todo.extend(targets.get(node, ()))
        after[name] = reached
    return after


def _bodies(after: dict[str, set[str]]) -> Iterable[frozenset[str]]:
    """Yield the largest sets of nodes that lead to each other."""
    seen: set[str] = set()
    for name, reached in after.items():
        if name in reached and name not in seen:
            body = frozenset(node for node in reached if name in after.get(node, ()))
            seen |= body
            yield body
