"""Capacity model: the needs of many runs, from unit costs that are measured here and now.

    python -m proofs.benchmarks simulate                                    # measure, predict, check
    python -m proofs.benchmarks simulate --runs 100000 --seconds-a-step 10  # and print needs

Unit costs come from four runs at once. The model predicts from them the rate and the history of twenty runs
at once, which are then measured. It holds when both are within 25 %.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from .bench import Bench, Running, bench
from .kit import Job
from .processes import cpu_seconds, memory_bytes
from .suites.idle import all_wait

WITHIN = 0.25
SIZE = 2048
_FEW = 4
_LONG = 40
_TOGETHER = 20
_STEPS = 10
_UPDATES = 6
"""Updates of a run's state in the database, a step.

Twice each: a workflow task started, a workflow task completed (it also starts the activity, on the same
worker), an activity completed.
"""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a step and of a run."""

    worker_ms: float
    """CPU time of the worker a step."""
    server_ms: float
    """CPU time of the server a step, with its database, which is an embedded SQLite."""
    client_ms: float
    run_ms: float
    """CPU time of all processes together that a run costs once."""
    step_bytes: float
    run_bytes: float
    waiting_kb: float
    """Memory of the worker for a run that it keeps in its cache."""
    actions: float = 2.0
    """Temporal's billable actions a step: two activities. An upsert every twenty steps is left out."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load: a number of runs, and their activity."""

    runs: int
    seconds_a_step: float = 10.0
    """Seconds from a model call to the next of a working run: mostly the provider's time."""
    working: float = 0.2
    """Share of runs that work; the rest wait for people, timers or the next message."""
    steps_a_run: int = 20

    @property
    def steps_a_second(self) -> float:
        """Steps a second of all runs together."""
        return self.runs * self.working / self.seconds_a_step


def needs(costs: Costs, load: Load) -> dict[str, float]:
    """Return the needs of the load: cores at 60 % use, memory, storage, actions."""
    rate = load.steps_a_second
    once = costs.run_ms / load.steps_a_run
    half = once / 2
    return {
        "steps a second": rate,
        "worker cores at 60 %": rate * (costs.worker_ms + half) / 1000 / 0.6,
        "server cores at 60 %, database included": rate * (costs.server_ms + half) / 1000 / 0.6,
        "workers' memory, all runs cached, GB": load.runs * costs.waiting_kb / 2**20,
        "new history a day, GB": rate
        * 86_400
        * (costs.step_bytes + costs.run_bytes / load.steps_a_run)
        / 2**30,
        "updates of run states a second": rate * _UPDATES,
        "actions a second": rate * (costs.actions + 3 / load.steps_a_run),
    }


async def measure(on: Bench, running: Running) -> Costs:
    """Measure the unit costs on a few runs at once: long runs, and short ones for the cost of a run."""
    long = await _few(on, running, _LONG, 1)
    short = await _few(on, running, 1, _LONG // 3)
    run_ms = max(0.0, sum(short.cpu) - sum(long.cpu))
    before = memory_bytes(running.worker.pid)
    waiting = [Job(id=on.id("waits"), steps=1, approval=True) for _ in range(200)]
    await running.driver.ask("start", waiting, 120, at_once=10)
    await all_wait(on.client, waiting)
    return Costs(
        worker_ms=long.cpu[0],
        server_ms=long.cpu[1],
        client_ms=long.cpu[2],
        run_ms=run_ms,
        step_bytes=long.bytes,
        run_bytes=max(0.0, short.bytes - long.bytes),
        waiting_kb=(memory_bytes(running.worker.pid) - before) / 1024 / len(waiting),
    )


@dataclass(frozen=True, kw_only=True)
class _Few:
    cpu: tuple[float, float, float]
    bytes: float


async def _few(on: Bench, running: Running, steps: int, times: int) -> _Few:
    pids = (running.worker.pid, on.server.pid, running.driver.pid)
    before = [cpu_seconds(pid) for pid in pids]
    written = 0.0
    for _ in range(times):
        jobs = [Job(id=on.id("few"), steps=steps, size=SIZE) for _ in range(_FEW)]
        await running.driver.ask("run", jobs, 120)
        for job in jobs:
            written += (await on.read_history(running, job)).bytes
    made = steps * times * _FEW
    spent = [(cpu_seconds(pid) - was) / made * 1000 for pid, was in zip(pids, before, strict=True)]
    return _Few(cpu=(spent[0], spent[1], spent[2]), bytes=written / made)


async def check(on: Bench, running: Running, costs: Costs) -> list[tuple[str, float, float]]:
    """Compare the model with twenty runs at once; return name, prediction and measurement of each."""
    cores = len(os.sched_getaffinity(0))
    step_ms = costs.worker_ms + costs.server_ms + costs.client_ms + costs.run_ms / _STEPS
    jobs = [Job(id=on.id("together"), steps=_STEPS, size=SIZE) for _ in range(_TOGETHER)]
    answer = await running.driver.ask("run", jobs, 300)
    written = [(await on.read_history(running, job)).bytes for job in jobs]
    return [
        ("steps a second", cores * 1000 / step_ms, _TOGETHER * _STEPS / answer["seconds"]),
        ("bytes of history a run", costs.step_bytes * _STEPS + costs.run_bytes, sum(written) / len(written)),
    ]


async def simulate(venvs: Path, load: Load) -> int:
    """Measure, predict and check; return 0 when the model holds."""
    async with bench(venvs) as on, on.running("perdure", cache=5000) as running:
        costs = await measure(on, running)
        checked = await check(on, running, costs)
    print("Unit costs:")
    for name, value in vars(costs).items():
        print(f"  {name:12} {value:10.2f}")
    print(f"\nThe model against {_TOGETHER} runs of {_STEPS} steps at once (it holds within {WITHIN:.0%}):")
    worst = 0.0
    for what, predicted, was in checked:
        off = was / predicted - 1
        worst = max(worst, abs(off))
        print(f"  {what:24} predicted {predicted:10.1f}  was {was:10.1f}  off by {off:+.0%}")
    print(f"\n{load.runs:,} runs, {load.working:.0%} of them at work, {load.seconds_a_step:g} s a step:")
    for what, value in needs(costs, load).items():
        print(f"  {what:42} {value:14,.1f}")
    return 0 if worst <= WITHIN else 1
