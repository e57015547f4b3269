"""Reading order of a directed graph: the edges that close a cycle, and a topological order. Pure.

Every tie is broken by the order of declaration, so the same graph always gives the same order.
"""

import heapq
from collections.abc import Iterable, Sequence

Edge = tuple[int, int]
"""Numbers of the boxes that an edge leaves and enters."""


def find_back_edges(count: int, edges: Sequence[Edge], roots: Iterable[int]) -> frozenset[int]:
    """Return the numbers of the edges that close a cycle in a depth-first search from the roots."""
    leaving: list[list[int]] = [[] for _ in range(count)]
    for number, (source, _) in enumerate(edges):
        leaving[source].append(number)
    on_path, visited, found = [False] * count, [False] * count, set[int]()
    # All boxes count as roots in the end: a cycle may be out of reach of the declared ones.
    for root in (*roots, *range(count)):
        # A stack of our own: a chain of thousands of nodes must not meet Python's recursion limit.
        path = [] if visited[root] else [(root, iter(leaving[root]))]
        visited[root] = True
        on_path[root] = bool(path)
        while path:
            box, untried = path[-1]
            edge = next(untried, None)
            if edge is None:
                on_path[box] = False
                path.pop()
                continue
            target = edges[edge][1]
            if on_path[target]:
                found.add(edge)
            elif not visited[target]:
                visited[target] = on_path[target] = True
                path.append((target, iter(leaving[target])))
    return frozenset(found)


def topological_order(count: int, edges: Sequence[Edge]) -> list[int]:
    """Return the boxes, each after those that lead to it; among free ones the earliest declared is first.

    The edges must not form a cycle: boxes on one would be missing.
    """
    missing, following = [0] * count, [list[int]() for _ in range(count)]
    for source, target in edges:
        missing[target] += 1
        following[source].append(target)
    ready = [box for box in range(count) if not missing[box]]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for target in following[order[-1]]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    return order
