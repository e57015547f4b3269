"""Cost of a step over the length of a run: wall time, CPU, history, memory."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..bench import OURS, Record, bench, measure_record, side_by_side
from ..kit import Job

STEPS = (10, 50, 200, 400, 1000, 3000)
SIZES = (2048, 10_240, 30_720)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of steps, sizes of results, and rounds."""

    steps: Iterable[int] = STEPS
    sizes: Iterable[int] = SIZES
    rounds: int = 3

    def rounds_of(self, subject: str, steps: int, size: int) -> int:
        """Return the rounds; long runs average over their steps, and peers need less precision."""
        if steps >= 3000:
            return int(subject in OURS and size == SIZES[0])
        if steps >= 1000 or subject not in OURS:
            return 1 + (steps < 100 and size == SIZES[0])
        return self.rounds if size == SIZES[0] else 1


async def steps(venvs: Path, subjects: list[str], plan: Plan) -> AsyncIterator[Record]:
    """Measure a run at a time, the subjects in turns."""
    dead: dict[tuple[str, int], tuple[int, str]] = {}
    for turn in range(1, plan.rounds + 1):
        for size in plan.sizes:
            async with bench(venvs) as on, side_by_side(on, subjects) as all_running:
                for count in plan.steps:
                    for running in all_running:
                        subject = running.subject
                        if turn > plan.rounds_of(subject, count, size):
                            continue
                        case = {"steps": count, "size": size}
                        least, why = dead.get((subject, size), (count + 1, ""))
                        # A subject that failed is not tried with longer runs: each takes minutes to fail.
                        if count > least:
                            yield Record(suite="steps", subject=subject, case=case, round=turn, error=why)
                            continue
                        job = Job(id=on.id(subject), steps=count, size=size)
                        measuring = on.measure(running, job, within=_within(count))
                        record = await measure_record("steps", subject, case, measuring, turn)
                        if record.error:
                            dead[subject, size] = count, f"as with {count} steps: {record.error}"
                        yield record


def _within(steps: int) -> float:
    """Return the seconds after which a run counts as stuck."""
    return 45 + steps * 0.25
