"""A hundred sub-agents, one budget, workers killed: what they spend together never passes it.

The whole proof is 20 runs with 100 sub-agents, `make stress`; every change is held to a short one.
"""

import asyncio
import os
import random
from collections import Counter

import pytest

from perdure import RunResult
from perdure.settings import Settings
from perdure.starter.client.connect import Client, connect
from perdure.starter.client.run import Run
from tests.conftest import until

from .conftest import Crew
from .family import BUDGET_USD, TOOL_CALLS

CREW = "tests.process.family"
RUNS = int(os.environ.get("FAMILY_RUNS", "1"))
CHILDREN = int(os.environ.get("FAMILY_CHILDREN", "20"))


@pytest.fixture(autouse=True)
def _children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMILY_CHILDREN", str(CHILDREN))


async def _kills(workers: Crew, chance: random.Random, run: Run, times: int) -> None:
    """Kill the worker so many times, each after some more work was done."""
    for _ in range(times):
        wanted = len(workers.happened()) + chance.randrange(1, CHILDREN)

        async def worked(wanted: int = wanted) -> bool:
            over = (await run.describe()).status != 1
            return over or len(workers.happened()) >= wanted

        await until(worked, within=120)
        workers.kill()
        workers.start()


async def _one(client: Client, workers: Crew, run_id: str, number: int) -> RunResult:
    run = await client.start("boss", "go", id=run_id)
    await _kills(workers, random.Random(number), run, times=3)
    async with asyncio.timeout(300):
        return await run.result()


async def _cut(run: Run) -> int:
    """Calls of which the model was told that they may or may not have had their effect: each of their
    attempts died with its worker.
    """
    children = [run.get(f"{run.id}/~worker-1-{n + 1}") for n in range(CHILDREN)]
    transcripts = [await child.transcript() for child in children]
    results = [one for messages in transcripts for message in messages for one in message.tool_results]
    return sum(one.error_kind == "tool_timeout" for one in results)


@pytest.mark.parametrize("number", range(RUNS))
async def test_tree_budget_holds_under_kills(workers: Crew, settings: Settings, number: int) -> None:
    """The sum over a tree never exceeds its budget, while workers are killed."""
    client = await connect(settings=settings)
    run_id = f"family-{number}"
    result = await _one(client, workers, run_id, number)
    effects = Counter(tool for _, tool in workers.effects())
    cap = TOOL_CALLS * CHILDREN // 100
    assert result.cost_microusd is not None
    assert result.cost_microusd <= BUDGET_USD * 1_000_000
    assert result.tool_calls <= cap
    assert effects["work"] <= cap - CHILDREN, "each call of a sub-agent is a tool call too"
    counted = result.tool_calls - CHILDREN
    assert counted - await _cut(client.get(run_id)) <= effects["work"] <= counted, (
        "every effect is counted, and once"
    )
    assert effects["work"] >= (cap - CHILDREN) * 0.8, "and what there is can be used"
