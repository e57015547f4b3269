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
    after = _reachable(edges)
    for body in _bodies(after):
        entered = {target for source, target in edges if target in body and source not in body}
        heads = entered | body.intersection(entries)
        found.update(dict.fromkeys(heads, body - heads))
        within = tuple(
            (source, target)
            for source, target in edges
            if source in body and target in body and target not in heads
        )
        found.update(inside_loops(within, ()))
    return found


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
