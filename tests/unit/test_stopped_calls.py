"""A call that a person stops before it is sent: the same error at each moment, with what earlier attempts have cost."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from perdure import Agent
from perdure.activities.content.blobs import FileBlobs
from perdure.activities.content.transcripts import ModelView, Transcripts
from perdure.activities.model import ModelCalls
from perdure.messages import Message, Usage
from perdure.prices import Price
from perdure.testing import ScriptedModel, says
from perdure.wire.effects import ModelFailure, ModelInput, Progress, TranscriptView
from perdure.wire.spec import AgentSpec, ModelSpec
from perdure.workflows.pending_activities import with_price

PRICE = Price(input=3_000_000, output=15_000_000, cache_read=0, cache_write=0)
SPENT = Usage(input_tokens=1000, output_tokens=100)


class Stalled(Transcripts):
    """Cache that waits for ever at one place."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.reached = asyncio.Event()

    async def wait_at(self, place: str) -> None:
        if place == self.place:
            self.reached.set()
            await asyncio.Event().wait()

    async def get_spec(self, digest: str) -> AgentSpec:
        await self.wait_at("spec")
        spec = Agent(name="a", model="scripted:x").spec()
        return spec.model_copy(update={"models": (ModelSpec(config=spec.models[0].config, price=PRICE),)})

    async def get_view(self, call: ModelInput) -> ModelView:
        await self.wait_at("view")
        return ModelView(messages=(Message.user("go"),), blobs=("0" * 64,))


class StalledBlobs(FileBlobs):
    """Store that waits for ever, if its cache says so."""

    def __init__(self, folder: Path, cache: Stalled) -> None:
        super().__init__(folder)
        self._cache_of_run = cache

    async def get(self, name: str) -> NoReturn:
        await self._cache_of_run.wait_at("blob")
        raise KeyError(name)


@pytest.mark.parametrize("place", ["spec", "view", "blob"])
async def test_stopped_call_keeps_its_cost(tmp_path: Path, place: str) -> None:
    """The failure has the usage and the cost of the attempts before, of which one was not heard of at all."""
    cache = Stalled(place)
    models = {"scripted": ScriptedModel([says("never")])}
    activity = ModelCalls(models=models, agents={}, transcripts=cache, blobs=StalledBlobs(tmp_path, cache))
    environment = ActivityEnvironment()
    earlier = Progress(call="step-1", attempt=1, seq=1, spent=SPENT).model_dump(mode="json")
    environment.info = replace(environment.info, attempt=3, heartbeat_details=[earlier])
    view = TranscriptView(length=1, start=0)
    call = ModelInput(agent="a", spec="x", step=1, view=view, max_tokens=100)
    calling = asyncio.ensure_future(environment.run(activity.call_model, call))
    await cache.reached.wait()
    environment.cancel()
    with pytest.raises(ApplicationError) as stopped:
        await calling
    [failure] = stopped.value.details
    assert isinstance(failure, ModelFailure)
    assert (stopped.value.type, stopped.value.message, stopped.value.non_retryable) == (
        "cancelled",
        "called back",
        True,
    )
    # The run knows the price that a worker without the spec does not.
    priced = with_price(failure, PRICE)
    assert (priced.wasted, priced.wasted_microusd, priced.unheard) == (SPENT, PRICE.cost_microusd(SPENT), 1)
