"""Verdict on growth: a robust slope over the second half of the samples, against a bound. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

Sample = dict[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Allowed growth an hour, with the reason for it."""

    key: str
    title: str
    most: float
    because: str
    step: float = 0.0
    """Growth over the whole judged time that cannot be told from the steps in which the number changes."""


BOUNDS = (
    Bound(
        key="rss_mb",
        title="resident memory, MB",
        most=12,
        because="a worker with 2 GB to spare then lives for a week; 6 MB in all cannot be told from the steps in "
        "which an allocator takes memory",
        step=6,
    ),
    Bound(
        key="handles",
        title="file handles",
        most=4,
        because="of the 1,024 that a process usually may have, a week of more would use up two thirds",
    ),
    Bound(key="threads", title="threads", most=2, because="pools fill up once, in the first half"),
    Bound(
        key="tasks",
        title="asyncio tasks",
        most=10,
        because="they follow the load, which is steady: a slope over half an hour and more is a leak",
    ),
    Bound(
        key="objects",
        title="Python objects",
        most=60_000,
        because="at some 200 bytes each these are the 12 MB that memory may grow",
    ),
    Bound(
        key="cached",
        title="cached workflows",
        most=20,
        because="as many end as begin; a run that another worker has taken over stays until its place is "
        "needed, and the soak's workers have few places",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Change of one number of a process over the second half of the soak."""

    process: str
    bound: Bound
    begin: float
    """Median of the first tenth of the second half: the value at half time."""
    end: float
    """Median of the last tenth."""
    an_hour: float
    hours: float
    """Length of the second half."""

    @property
    def is_fine(self) -> bool:
        """True when the number grows no faster than allowed, or by less than one of its steps."""
        return self.an_hour <= self.bound.most or self.an_hour * self.hours <= self.bound.step


def slope(points: Sequence[Point]) -> float:
    """Return Theil and Sen's slope, the median over all pairs; a third of outliers does not move it."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] != a[0]]
    return median(slopes) if slopes else 0.0


def second_half(points: Sequence[Point]) -> list[Point]:
    """Return the points of the second half of the time; in the first, caches and pools fill up."""
    middle = (points[0][0] + points[-1][0]) / 2 if points else 0.0
    return [point for point in points if point[0] >= middle]


def points_of(samples: Iterable[Sample], process: str, key: str) -> list[Point]:
    """Return hours since the beginning, and values, as far as the process has them."""
    return [
        (sample["seconds"] / 3600, sample["processes"][process][key])
        for sample in samples
        if key in sample["processes"].get(process, {})
    ]


def findings(samples: Sequence[Sample], processes: Sequence[str]) -> list[Finding]:
    """Judge each process by every bound for which there are samples under load."""
    loaded = [sample for sample in samples if sample["loaded"]]
    found: list[Finding] = []
    for process in processes:
        for bound in BOUNDS:
            points = second_half(points_of(loaded, process, bound.key))
            if not points:
                continue
            # Begin and end are medians of many samples: one may fall just before a garbage collection.
            tenth = max(1, len(points) // 10)
            found.append(
                Finding(
                    process=process,
                    bound=bound,
                    begin=median(value for _, value in points[:tenth]),
                    end=median(value for _, value in points[-tenth:]),
                    an_hour=slope(points),
                    hours=points[-1][0] - points[0][0],
                )
            )
    return found


def left_over(samples: Sequence[Sample], processes: Sequence[str]) -> dict[str, float]:
    """Return the cached workflows of each process after all runs have ended."""
    after = [sample for sample in samples if not sample["loaded"]]
    last: dict[str, dict[str, float]] = after[-1]["processes"] if after else {}
    return {process: last[process]["cached"] for process in processes if "cached" in last.get(process, {})}
