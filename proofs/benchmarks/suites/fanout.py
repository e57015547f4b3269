"""Step that asks for a hundred calls at once: tool calls, and agents."""

from collections.abc import AsyncIterator
from pathlib import Path

from ..bench import OURS, Record, bench, measure_record, side_by_side
from ..kit import Job

WIDE = 100


async def fanout(venvs: Path, subjects: list[str], rounds: int) -> AsyncIterator[Record]:
    """Measure a hundred tool calls in a step; for the floor and Perdure also a hundred sub-agents."""
    for turn in range(1, rounds + 1):
        async with bench(venvs) as on, side_by_side(on, subjects) as all_running:
            for kind in ("calls", "children"):
                for running in all_running:
                    subject = running.subject
                    if kind == "children" and subject not in OURS:
                        continue
                    job = Job(id=on.id(subject), steps=1, size=2048, calls=WIDE, children=kind == "children")
                    case = {kind: WIDE}
                    measuring = on.measure(running, job, within=180)
                    yield await measure_record("fanout", subject, case, measuring, turn)
