"""The short check for every change: counts and bytes of Perdure beside the floor, and never a time.

It fails when a step costs more events or bytes than it may, when that grows with the length of a run, when a
worker has to ask for a transcript that it has itself written, or when watching leaves a trace in history.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from .bench import Bench, Running, bench, side_by_side
from .kit import Job

SIZE = 2048
BEYOND_RESULT = {10: 2560, 50: 2370, 120: 2300}
"""Most bytes of history a step beyond the tool's own result, by the number of steps."""
EVENTS_BESIDE_FLOOR = {10: 1.0, 50: 0.3, 120: 0.2}
"""Most events a step more than the floor's: fetching the agent, and search attributes, once a run."""


@dataclass(frozen=True)
class Finding:
    """One thing that was counted, and how much there may be of it."""

    what: str
    counted: float
    most: float

    @property
    def is_fine(self) -> bool:
        """Whether it is within bounds."""
        return self.counted <= self.most

    def __str__(self) -> str:
        mark = "ok  " if self.is_fine else "FAIL"
        return f"{mark} {self.what}: {self.counted:.1f}, at most {self.most:.1f}"


async def quick(venvs: Path) -> list[Finding]:
    """Everything that is counted."""
    async with bench(venvs) as on, side_by_side(on, ["floor", "perdure"]) as (floor, ours):
        found = [one async for one in _of_steps(on, floor, ours)]
        found += [one async for one in _of_width(on, floor, ours)]
        found += [one async for one in _of_watchers(on, ours)]
    return found


async def _of_steps(on: Bench, floor: Running, ours: Running) -> AsyncIterator[Finding]:
    by_length: dict[int, float] = {}
    for steps, most in BEYOND_RESULT.items():
        least = await on.measured(floor, Job(id=on.id("floor"), steps=steps, size=SIZE), within=300)
        values = await on.measured(ours, Job(id=on.id("perdure"), steps=steps, size=SIZE), within=300)
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


async def _of_width(on: Bench, floor: Running, ours: Running) -> AsyncIterator[Finding]:
    wide = [Job(id=on.id("wide"), steps=1, size=SIZE, calls=100) for _ in range(2)]
    least = await on.measured(floor, wide[0], within=120)
    values = await on.measured(ours, wide[1], within=120)
    yield Finding(
        "bytes of 100 tool calls in one step, beside the floor's", values["bytes"] / least["bytes"], 1.3
    )


async def _of_watchers(on: Bench, ours: Running) -> AsyncIterator[Finding]:
    sizes: list[float] = []
    for watchers in (0, 3):
        job = Job(id=on.id("watched"), steps=1, size=100, tokens=300, rate=150)
        answer = await ours.driver.ask("watch", [job], 60, watchers=watchers)
        for heard in _missed(answer["heard"], job.tokens):
            yield heard
        sizes.append((await on.seen(ours, job)).bytes)
    yield Finding("bytes of history that three watchers add", abs(sizes[1] - sizes[0]), 64)


def _missed(heard: list[int], words: int) -> Iterator[Finding]:
    for count in heard:
        yield Finding("words that a watcher did not hear", abs(words - count), 0)
