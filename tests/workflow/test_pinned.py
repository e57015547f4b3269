"""Deploys under open runs: nothing of the live agent is consulted beside the pinned spec."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from perdure import Agent, ToolRetry, tool
from perdure.hooks import Deny, Hook, HookedCall, Verdict
from perdure.messages import ToolResult
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls
from perdure.tools import Tool
from tests.conftest import Serve, until_status


class Quote(BaseModel):
    price: int


class QuoteInCurrency(BaseModel):
    price: int
    currency: str


class Refuses(Hook):
    async def before_tool(self, call: HookedCall) -> Verdict | None:
        return Deny(reason="refused by the hook")


class LetsPass(Hook):
    async def before_tool(self, call: HookedCall) -> Verdict | None:
        return None


GUARDED = (
    "not run: the agent 'seller' has no hook at before_tool on this worker, but the run was started with one"
)
TWICE = "ConnectionResetError: cut (after 2 attempts). It may or may not have taken effect."
attempts: list[int] = []


@tool(approval=True)
async def publish(price: int) -> str:
    """Publish a price."""
    return "published"


async def fetch() -> str:
    """Fetch something, from a line that is cut."""
    attempts.append(1)
    await asyncio.sleep(0.01)
    raise ConnectionResetError("cut")


def _fetch(**settings: Any) -> Tool:
    return tool(
        retry=ToolRetry(initial_interval=timedelta(milliseconds=1), **settings.pop("retry")), **settings
    )(fetch)


old = _fetch(effect="write", retry={"attempts": 2}, timeout=timedelta(seconds=30))
new = _fetch(effect="read", retry={"attempts": 1}, timeout=timedelta(milliseconds=1))
before = Agent(name="seller", model="scripted:x", tools=[publish, old], output_type=Quote)


def model(request: ModelRequest) -> Any:
    """Publish, then fetch, then answer with the fields of the schema that is shown."""
    if request.step < 3:
        return calls("publish", price=5) if request.step == 1 else calls("fetch")
    shown = next(each for each in request.tools if each.name == "final_answer").input_schema["properties"]
    return calls("final_answer", **{name: {"price": 5, "currency": "EUR"}[name] for name in shown})


@pytest.mark.parametrize(
    ("pinned", "deployed", "fetched"),
    [
        (before, replace(before, output_type=QuoteInCurrency, tools=[publish, new]), TWICE),
        (before, replace(before, output_type=None, hooks=[Refuses()]), TWICE),
        (
            replace(before, hooks=[LetsPass()]),
            before,
            GUARDED,
        ),
    ],
    ids=["new type and settings", "new hook", "hook taken away"],
)
async def test_deploy_judges_no_open_run(serve: Serve, pinned: Agent, deployed: Agent, fetched: str) -> None:
    """An open run keeps its output type, and each tool's timeout, attempts, effect and hooks."""
    attempts.clear()
    models = {"scripted": ScriptedModel(model)}
    async with serve(pinned, models=models) as client:
        run = await client.start("seller", "Publish 5.")
        await until_status(client, run.id, "waiting_approval")
    async with serve(deployed, models=models) as client:
        run = client.get(run.id)
        await run.resolve_approval("call-1-1", allow=True)
        result = await asyncio.wait_for(run.result(), 60)
        parts = [part for message in await run.transcript() for part in message.parts]
    results = {part.name: part.text for part in parts if isinstance(part, ToolResult)}
    assert (result.stop_reason, result.output) == ("end_turn", {"price": 5})
    del results["final_answer"]
    assert results == {"publish": "published", "fetch": fetched}
    assert len(attempts) == (2 if fetched == TWICE else 0)
