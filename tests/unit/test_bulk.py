"""An action on many runs reaches all of them, whatever becomes of some."""

import asyncio
import contextlib

from perdure.errors import RunNotFound
from perdure.starter.client.bulk import act_on_each

IDS = [f"r-{number}" for number in range(50)]


async def test_outcomes_keep_the_order_of_ids() -> None:
    async def act(run_id: str) -> None:
        await asyncio.sleep(0 if run_id == "r-0" else 0.001)
        if run_id == "r-7":
            raise RunNotFound(run_id)

    outcomes = [outcome async for outcome in act_on_each(IDS, act)]
    assert [outcome.id for outcome in outcomes] == IDS
    assert [outcome.id for outcome in outcomes if outcome.error is not None] == ["r-7"]


async def test_few_runs_are_acted_on_at_once() -> None:
    active, most = 0, 0

    async def act(_: str) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1

    assert len([outcome async for outcome in act_on_each(IDS, act)]) == len(IDS)
    assert most == 20


async def test_a_reader_that_leaves_stops_nothing() -> None:
    done: list[str] = []

    async def act(run_id: str) -> None:
        await asyncio.sleep(0)
        done.append(run_id)

    async with contextlib.aclosing(act_on_each(IDS, act)) as outcomes:
        async for _ in outcomes:
            break
    assert sorted(done) == sorted(IDS)
