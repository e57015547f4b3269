"""Many runs at once on a worker: steps a second, and the time of a single step."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from ..bench import OURS, Bench, Record, Running, bench, cpu_seconds, measure_record, quantile
from ..kit import Job

CONCURRENT = (20, 200)
STEPS = 10


async def throughput(venvs: Path, subjects: list[str], rounds: int) -> AsyncIterator[Record]:
    """Measure many runs of ten steps at once, the subjects in turns, each alone on the machine."""
    for turn in range(1, rounds + 1):
        async with bench(venvs) as on:
            for concurrent in CONCURRENT:
                for subject in subjects:
                    if turn > _rounds(subject, concurrent, rounds):
                        continue
                    case = {"concurrent": concurrent, "steps": STEPS}
                    async with on.running(subject) as running:
                        measuring = _measure(on, running, concurrent)
                        yield await measure_record("throughput", subject, case, measuring, turn)


def _rounds(subject: str, concurrent: int, rounds: int) -> int:
    """Return the rounds; peers need less precision, and many runs average over themselves."""
    return 1 if subject not in OURS or concurrent >= 200 else rounds


async def _measure(on: Bench, running: Running, concurrent: int) -> dict[str, float]:
    jobs = [Job(id=on.id(running.subject), steps=STEPS) for _ in range(concurrent)]
    before = cpu_seconds(running.worker.pid), cpu_seconds(on.server.pid)
    answer = await running.driver.ask("run", jobs, 600)
    worker = cpu_seconds(running.worker.pid) - before[0]
    server = cpu_seconds(on.server.pid) - before[1]
    steps = concurrent * STEPS
    values = {
        "steps_per_second": steps / answer["seconds"],
        "steps_per_core_second": steps / answer["seconds"] / len(os.sched_getaffinity(0)),
        "worker_cpu_ms": worker / steps * 1000,
        "server_cpu_ms": server / steps * 1000,
    }
    if running.names.workflow:
        times: list[float] = []
        for job in jobs:
            times += (await on.read_history(running, job)).step_times
        times.sort()
        values |= {
            "step_p50_ms": quantile(times, 0.5) * 1000,
            "step_p99_ms": quantile(times, 0.99) * 1000,
        }
    return values
