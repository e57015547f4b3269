"""Layered layout: boxes in rows from the top down, edges as smooth lines between them. Pure.

Theory of operation
1. Edges that close a cycle are found by a search from the roots, and laid out the other way round.
2. A box stands one row below the lowest of those that lead to it. Between two rows of boxes is a
   row of edges. An edge has a place of its own in every row that it crosses, as wide as its label in
   the row of edges next to its source, so that nothing is drawn over boxes and labels.
3. The order within the rows is improved by barycentres, and the best one seen is kept (Sugiyama,
   Tagawa, Toda 1981).
4. Places move sideways to where the weighted sum of the squared sideways steps of all edges is
   least, given order and gaps: row after row, each solved exactly by pooling adjacent violators.
5. Every tie is broken by the order of declaration: the same input gives the same layout.
"""

import heapq
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

Point = tuple[float, float]

_GAP: Final = 26.0
"""Between neighbours of a row."""
_STEP: Final = 56.0
"""Least height of a row of edges."""
_LABEL_STEP: Final = 12.0
"""So much more where there are labels."""
_STUB: Final = 10.0
"""An edge is upright for so long at its ends, that its arrow head stands upright."""
_LANE: Final = 7.0
"""Half the width of an edge's place."""
_ISOLATED: Final = 4
"""Boxes without edges in a row."""
_SWEEPS: Final = 24
_SETTLING: Final = 60
_STRAIGHT: Final = 8.0
"""How much more an edge's own places hold together than an edge and its boxes."""
_LOOSE: Final = 0.001
"""Weight of a box that no edge pulls at."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a box, and how much room it wants beside it."""

    width: float
    height: float
    left: float = 0
    right: float = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """An edge: from box `source` to box `target`, with a label so wide (0: none)."""

    source: int
    target: int
    label: float = 0


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where an edge runs: points in its own direction, upright at each; and the middle of its label."""

    points: tuple[Point, ...]
    label: Point
    back: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Middles of the boxes, and routes of the edges; None for an edge from a box to itself."""

    width: float
    height: float
    places: tuple[Point, ...]
    routes: tuple[Route | None, ...]


def layout(sizes: Sequence[Size], lines: Sequence[Line], roots: Iterable[int]) -> Layout:
    """Lay out the boxes, the roots towards the top."""
    grid = _Grid(sizes, lines, roots)
    grid.order()
    grid.settle()
    return grid.drawn()


# -- order of boxes, for text as well


def back_arrows(count: int, ends: Sequence[tuple[int, int]], roots: Iterable[int]) -> frozenset[int]:
    """Numbers of the edges that close a cycle, searched from the roots, in the order given."""
    leaving: list[list[int]] = [[] for _ in range(count)]
    for at, (source, _) in enumerate(ends):
        leaving[source].append(at)
    is_open, seen, found = [False] * count, [False] * count, set[int]()
    for root in (*roots, *range(count)):
        path = [] if seen[root] else [(root, iter(leaving[root]))]
        seen[root] = is_open[root] = seen[root] or True
        while path:
            box, rest = path[-1]
            edge = next(rest, None)
            target = box if edge is None else ends[edge][1]
            if edge is None:
                is_open[box] = False
                path.pop()
            elif is_open[target]:
                found.add(edge)
            elif not seen[target]:
                seen[target] = is_open[target] = True
                path.append((target, iter(leaving[target])))
    return frozenset(found)


def topological(count: int, ends: Sequence[tuple[int, int]]) -> list[int]:
    """The boxes, each after those that lead to it, else as they were declared. No cycles allowed."""
    left, following = [0] * count, [list[int]() for _ in range(count)]
    for source, target in ends:
        left[target] += 1
        following[source].append(target)
    ready = [box for box in range(count) if not left[box]]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for target in following[order[-1]]:
            left[target] -= 1
            if not left[target]:
                heapq.heappush(ready, target)
    return order


def _ranks(count: int, ends: Sequence[tuple[int, int]]) -> list[int]:
    """Row of each box, by the longest way to it; boxes without edges fill rows of their own."""
    ranks, following = [0] * count, [list[int]() for _ in range(count)]
    for source, target in ends:
        following[source].append(target)
    for box in topological(count, ends):
        for target in following[box]:
            ranks[target] = max(ranks[target], ranks[box] + 1)
    linked = {box for pair in ends for box in pair}
    alone = [box for box in range(count) if box not in linked]
    below = max((ranks[box] + 1 for box in linked), default=0)
    for at, box in enumerate(alone):
        ranks[box] = below + at // _ISOLATED
    return ranks


# -- the grid


@dataclass(kw_only=True)
class _Place:
    """A box, or an edge crossing a row."""

    row: int
    left: float
    right: float
    above: list[int] = field(default_factory=list[int])
    below: list[int] = field(default_factory=list[int])
    x: float = 0


class _Grid:
    """Places in rows: boxes in the even ones. The first places are the boxes."""

    def __init__(self, sizes: Sequence[Size], lines: Sequence[Line], roots: Iterable[int]) -> None:
        self._sizes = sizes
        self._lines = lines
        ends = [(line.source, line.target) for line in lines]
        self._back = back_arrows(len(sizes), ends, roots)
        downward = [
            (target, source) if at in self._back else (source, target)
            for at, (source, target) in enumerate(ends)
        ]
        ranks = _ranks(len(sizes), [pair for pair in downward if pair[0] != pair[1]])
        self._places = [
            _Place(row=2 * rank, left=size.left + size.width / 2, right=size.right + size.width / 2)
            for size, rank in zip(sizes, ranks, strict=True)
        ]
        self._labels: dict[int, list[int]] = {}
        """Places with labels, by row."""
        self._chains = [self._chain(at, *pair) for at, pair in enumerate(downward)]
        self._rows: list[list[int]] = [[] for _ in range(max((p.row for p in self._places), default=0) + 1)]
        for number, place in enumerate(self._places):
            self._rows[place.row].append(number)

    def _chain(self, at: int, top: int, bottom: int) -> list[int]:
        """The places of an edge, from its upper end to its lower end."""
        rows = range(self._places[top].row + 1, self._places[bottom].row)
        labelled = (rows[-1] if at in self._back else rows[0]) if rows else None
        chain = [top]
        for row in rows:
            label = self._lines[at].label if row == labelled else 0
            half = max(_LANE, label / 2)
            chain.append(len(self._places))
            self._places.append(_Place(row=row, left=half, right=half))
            if label:
                self._labels.setdefault(row, []).append(chain[-1])
        chain += [bottom] if rows else []
        for upper, lower in pairwise(chain):
            self._places[upper].below.append(lower)
            self._places[lower].above.append(upper)
        return chain

    # -- order within the rows

    def order(self) -> None:
        """Order the rows so that few edges cross."""
        best = (self._crossings(), [list(row) for row in self._rows])
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            rows = range(1, len(self._rows)) if down else range(len(self._rows) - 2, -1, -1)
            for row in rows:
                self._sort(row, down=down)
            crossings = self._crossings()
            if crossings < best[0]:
                best = (crossings, [list(row) for row in self._rows])
        self._rows = best[1]

    def _sort(self, row: int, *, down: bool) -> None:
        position = self._positions(row - 1 if down else row + 1)
        own = self._positions(row)

        def barycentre(number: int) -> tuple[float, int]:
            place = self._places[number]
            near = [position[other] for other in (place.above if down else place.below)]
            return (sum(near) / len(near) if near else own[number], own[number])

        self._rows[row].sort(key=barycentre)

    def _positions(self, row: int) -> dict[int, int]:
        return {number: at for at, number in enumerate(self._rows[row])}

    def _crossings(self) -> int:
        count = 0
        for row, numbers in enumerate(self._rows[:-1]):
            position = self._positions(row + 1)
            passed: list[int] = []
            for number in numbers:
                ends = sorted(position[other] for other in self._places[number].below)
                count += sum(len(passed) - bisect_right(passed, end) for end in ends)
                for end in ends:
                    insort(passed, end)
        return count

    # -- where they stand

    def settle(self) -> None:
        """Move the places sideways to where their edges are as upright as can be."""
        for _ in range(_SETTLING):
            for row in (*self._rows, *reversed(self._rows)):
                self._settle(row)
        left = min((place.x - place.left for place in self._places), default=0)
        for place in self._places:
            place.x -= left

    def _settle(self, row: Sequence[int]) -> None:
        blocks: list[list[float]] = []  # of places that touch: sum of wishes, weight, number
        offset, offsets = 0.0, list[float]()
        for at, number in enumerate(row):
            place = self._places[number]
            offset += self._places[row[at - 1]].right + _GAP + place.left if at else 0
            offsets.append(offset)
            wish, weight = self._wish(number)
            blocks.append([(wish - offset) * weight, weight, 1])
            while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
                last = blocks.pop()
                blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
        starts = [total / weight for total, weight, count in blocks for _ in range(int(count))]
        for number, start, offset in zip(row, starts, offsets, strict=True):
            self._places[number].x = start + offset

    def _wish(self, number: int) -> tuple[float, float]:
        """Where a place would stand for its edges' sake, and how strongly it wants to."""
        place, is_edge = self._places[number], number >= len(self._sizes)
        pulls = [
            (self._places[number].x, _STRAIGHT if is_edge and number >= len(self._sizes) else 1.0)
            for number in (*place.above, *place.below)
        ]
        weight = sum(pull for _, pull in pulls)
        return (sum(x * pull for x, pull in pulls) / weight, weight) if pulls else (place.x, _LOOSE)

    # -- what comes out

    def drawn(self) -> Layout:
        """The layout, heights of rows decided."""
        bands, y = list[tuple[float, float]](), 0.0
        for row, numbers in enumerate(self._rows):
            height = self._height(row, numbers)
            bands.append((y, y + height))
            y += height
        boxes = self._places[: len(self._sizes)]
        middles = [sum(bands[place.row]) / 2 for place in boxes]
        return Layout(
            width=max((place.x + place.right for place in self._places), default=0),
            height=y,
            places=tuple((place.x, middle) for place, middle in zip(boxes, middles, strict=True)),
            routes=tuple(self._route(at, chain, bands) for at, chain in enumerate(self._chains)),
        )

    def _height(self, row: int, numbers: Sequence[int]) -> float:
        if row % 2 == 0:
            return max((self._sizes[n].height for n in numbers if n < len(self._sizes)), default=0)
        places = [self._places[number] for number in numbers]
        steps = [abs(p.x - self._places[o].x) for p in places for o in (*p.above, *p.below)]
        least = _STEP + (_LABEL_STEP if row in self._labels else 0)
        return min(least + 0.12 * max(steps, default=0), 3 * _STEP)

    def _route(self, at: int, chain: Sequence[int], bands: Sequence[tuple[float, float]]) -> Route | None:
        if len(chain) < 2:
            return None
        points: list[Point] = []
        for step, number in enumerate(chain):
            place, (top, bottom) = self._places[number], bands[self._places[number].row]
            if number < len(self._sizes):
                points += self._port(chain, step, (top, bottom))
            elif place.row % 2 == 0:
                points += [(place.x, top), (place.x, bottom)]
            elif self._bends(chain, step):
                points.append((place.x, (top + bottom) / 2))
        back = at in self._back
        named = self._places[chain[-2] if back else chain[1]]
        label = (named.x, sum(bands[named.row]) / 2)
        return Route(points=tuple(reversed(points) if back else points), label=label, back=back)

    def _bends(self, chain: Sequence[int], step: int) -> bool:
        """Whether an edge keeps to its place between two rows: for its own label, or around another's."""
        number = chain[step]
        before, after = self._places[chain[step - 1]].x, self._places[chain[step + 1]].x
        labels = self._labels.get(self._places[number].row, [])
        return number in labels or any(
            abs((before + after) / 2 - self._places[one].x) < self._places[one].right + _STUB
            for one in labels
        )

    def _port(self, chain: Sequence[int], step: int, band: tuple[float, float]) -> list[Point]:
        """Where an edge touches a box, and where it leaves the box's row: beside the box's other edges."""
        number = chain[step]
        box, half = self._places[number], self._sizes[number].height / 2
        near, other = (box.below, chain[1]) if step == 0 else (box.above, chain[-2])
        side = sorted(near, key=lambda one: (self._places[one].x, one))
        gap = min(22.0, (self._sizes[number].width - 24) / len(side))
        x = box.x + (side.index(other) - (len(side) - 1) / 2) * gap
        middle = sum(band) / 2
        if step == 0:
            return [(x, middle + half), (x, band[1] + _STUB)]
        return [(x, band[0] - _STUB), (x, middle - half)]
