"""A provider is away for ten minutes under two hundred agents: nothing lost, no storm, before or after.

Time is a sixtieth of itself here: ten minutes are ten seconds, and so are all the waits.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure import Agent, tool
from perdure.model import ModelRequest
from perdure.settings import RateLimit
from perdure.testing import Line, ScriptedModel, calls, fails, says
from tests.conftest import Serve, until

AGENTS = 200
OUTAGE = 10.0
SCALE = 60
THRESHOLD = 5
AT_ONCE = 20
RATE = 30
"""Calls a second."""
WAIT = timedelta(seconds=15) / SCALE
NAP = timedelta(seconds=30) / SCALE


@dataclass
class Provider:
    """Answers, or does not, and notes when it was asked and what it said."""

    clock: Callable[[], float]
    is_away: bool = False
    asked: list[tuple[float, bool]] = field(default_factory=list[tuple[float, bool]])

    def __call__(self, request: ModelRequest) -> Line:
        self.asked.append((self.clock(), self.is_away))
        if self.is_away:
            return fails("overloaded", "away")
        return calls("work") if request.step < 3 else says("done")

    @property
    def in_vain(self) -> int:
        return sum(away for _, away in self.asked)

    def most_within(self, seconds: float, after: float) -> int:
        times = sorted(at for at, _ in self.asked if at >= after)
        return max((sum(start <= at < start + seconds for at in times) for start in times), default=0)


@tool
async def work() -> str:
    """Work."""
    return "worked"


def _settings(**more: Any) -> dict[str, Any]:
    return {
        "circuit_threshold": THRESHOLD,
        "circuit_wait": WAIT,
        "parked_retry": NAP,
        "max_concurrent_activities": AT_ONCE,
        **more,
    }


async def test_outage_ends_without_storm(serve: Serve) -> None:
    """An outage costs few calls, loses no run and ends without a storm."""
    loop = asyncio.get_running_loop()
    main, spare = Provider(loop.time), Provider(loop.time)
    alone = Agent(name="alone", model="main:x", tools=[work])
    covered = Agent(name="covered", model="main:x", fallbacks=["spare:x"], tools=[work])
    models = {"main": ScriptedModel(main), "spare": ScriptedModel(spare)}
    limits = {"main": RateLimit(calls=60 * RATE)}
    async with serve(alone, covered, models=models, **_settings(rate_limits=limits)) as client:
        main.is_away, began = True, loop.time()
        starting = [client.start("alone" if n % 2 else "covered", f"go {n}") for n in range(AGENTS)]
        runs = await asyncio.gather(*starting)
        waiting, helped = runs[1::2], runs[0::2]
        results = await asyncio.gather(*(run.result() for run in helped))
        assert {result.output for result in results} == {"done"}, "who had another model never stopped"

        async def parked() -> bool:
            return len([1 async for _ in client.parked_runs(agent="alone", query=_mine(waiting[0].id))]) == 1

        await until(parked)
        await until(lambda: asyncio.sleep(0, loop.time() - began >= OUTAGE), within=2 * OUTAGE)
        main.is_away, over = False, loop.time()
        assert main.in_vain <= THRESHOLD + AT_ONCE + 2 * (over - began) / WAIT.total_seconds()
        results = await asyncio.gather(*(run.result() for run in waiting))
        assert {(result.output, result.steps) for result in results} == {("done", 3)}
        assert not [info async for info in client.list(status="failed", agent="alone")]
    asked = len(main.asked) - main.in_vain
    assert asked == 3 * len(waiting), "each step was paid for once"
    back = main.most_within(3.0, over)
    print(f"asked in vain {main.in_vain} times; afterwards at most {back} calls in three seconds")  # noqa: T201
    # Windows of a second, seen through those of three that begin anywhere, on a machine that may stand still.
    assert back <= (3 + 1) * RATE + 1, "they came back at the rate that was set"


def _mine(run_id: str) -> str:
    return f'WorkflowId = "{run_id}"'
