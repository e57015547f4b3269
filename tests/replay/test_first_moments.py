"""Whatever reaches a run in its first moments, its history replays.

A local activity in the first workflow task did not stand this: a message that arrived while it ran
gave a history that no worker could replay, and the run was stuck as soon as it left the cache.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from temporalio.worker import Replayer

from perdure import Agent, PerdureError, PerdurePlugin
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import Serve

AGENT = Agent(name="a", model="scripted:x")
Act = Callable[[Run], Coroutine[Any, Any, Any]]


async def pause_and_resume(run: Run) -> None:
    await run.pause()
    await run.resume()


ACTS: dict[str, list[Act]] = {
    "status, send": [lambda run: run.status(), lambda run: run.send("also this")],
    "send, send": [lambda run: run.send("one"), lambda run: run.send("two")],
    "stop, send": [lambda run: run.stop(), lambda run: run.send("wait")],
    "pause, resume": [pause_and_resume],
    "cancel, send": [lambda run: run.cancel(), lambda run: run.send("wait")],
    "resolve_approval": [lambda run: run.resolve_approval("call-1-1", allow=True)],
}


def script(request: ModelRequest) -> Line:
    return calls("nothing") if request.step == 1 else says("done")


@pytest.mark.parametrize("acts", list(ACTS.values()), ids=list(ACTS))
async def test_a_run_that_is_told_things_while_it_starts_still_replays(
    serve: Serve, settings: Settings, acts: list[Act]
) -> None:
    async def attempt(run: Run, act: Act) -> None:
        with contextlib.suppress(PerdureError):  # refused is fine: the run may be over
            await act(run)

    async with serve(AGENT, models={"scripted": ScriptedModel(script)}) as client:
        runs = [await client.start("a", "go") for _ in range(6)]
        await asyncio.gather(*(attempt(run, act) for run in runs for act in acts))
        await asyncio.gather(*(run.result() for run in runs))
        replayer = Replayer(workflows=[], namespace="default", plugins=[PerdurePlugin(settings=settings)])
        for run in runs:
            result = await replayer.replay_workflow(await run.handle.fetch_history())
            assert result.replay_failure is None
