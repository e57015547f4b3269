"""Short check for every change: counts and bytes of Perdure beside the floor, and never a time.

The check fails when a step costs too many events or bytes, when its cost grows with the length of a run, when
a watcher misses words, or when watching leaves a trace in history.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from .bench import Bench, Running, bench, side_by_side
from .kit import Job

SIZE = 2048
BEYOND_RESULT = {10: 2560, 50: 2370, 120: 2300}
"""Maximum bytes of history a step beyond the tool's own result, by the number of steps."""
EVENTS_BESIDE_FLOOR = {10: 1.0, 50: 0.3, 120: 0.2}
"""Maximum events a step beyond the floor's: each run fetches its agent and sets search attributes."""


@dataclass(frozen=True)
class Finding:
    """Count, and its bound."""

    what: str
    counted: float
    most: float

    @property
    def is_fine(self) -> bool:
        """True when the count is within its bound."""
        return self.counted <= self.most

    def __str__(self) -> str:
        mark = "ok  " if self.is_fine else "FAIL"
        return f"{mark} {self.what}: {self.counted:.1f}, at most {self.most:.1f}"


async def quick(venvs: Path) -> list[Finding]:
    """Count everything."""
    async with bench(venvs) as on, side_by_side(on, ["floor", "perdure"]) as (floor, ours):
        found = [finding async for finding in _count_steps(on, floor, ours)]
        found += [finding async for finding in _count_width(on, floor, ours)]
        found += [finding async for finding in _count_watchers(on, ours)]
    return found


async def _count_steps(on: Bench, floor: Running, ours: Running) -> AsyncIterator[Finding]:
    by_length: dict[int, float] = {}
    for steps, most in BEYOND_RESULT.items():
        least = await on.measure(floor, Job(id=on.id("floor"), steps=steps, size=SIZE), within=300)
        values = await on.measure(ours, Job(id=on.id("perdure"), steps=steps, size=SIZE), within=300)
        by_length[steps] = values["bytes"]
        yield Finding(
            f"bytes a step beyond the tool's result, {steps} steps",
            values["bytes"] - SIZE,
            most,
        )
        yield Finding(
            f"events a step more than the floor's, {steps} steps",
            values["events"] - least["events"],
            EVENTS_BESIDE_FLOOR[steps],
        )
    yield Finding("growth of a step's bytes from 50 steps to 120, in percent", _growth(by_length), 0.0)


def _growth(by_length: dict[int, float]) -> float:
    shorter, longer = sorted(by_length)[-2:]
    return (by_length[longer] / by_length[shorter] - 1) * 100


async def _count_width(on: Bench, floor: Running, ours: Running) -> AsyncIterator[Finding]:
    wide = [Job(id=on.id("wide"), steps=1, size=SIZE, calls=100) for _ in range(2)]
    least = await on.measure(floor, wide[0], within=120)
    values = await on.measure(ours, wide[1], within=120)
    yield Finding(
        "bytes of 100 tool calls in one step, beside the floor's", values["bytes"] / least["bytes"], 1.3
    )


async def _count_watchers(on: Bench, ours: Running) -> AsyncIterator[Finding]:
    sizes: list[float] = []
    for watchers in (0, 3):
        job = Job(id=on.id("watched"), steps=1, size=100, tokens=300, rate=150)
        answer = await ours.driver.ask("watch", [job], 60, watchers=watchers)
        for heard in _missed_words(answer["heard"], job.tokens):
            yield heard
        sizes.append((await on.read_history(ours, job)).bytes)
    yield Finding("bytes of history that three watchers add", abs(sizes[1] - sizes[0]), 64)


def _missed_words(heard: list[int], words: int) -> Iterator[Finding]:
    for count in heard:
        yield Finding("words that a watcher missed", abs(words - count), 0)
