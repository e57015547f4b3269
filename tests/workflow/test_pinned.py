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
from perdure.testing import ScriptedModel, calls, fails, says
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


def _chain(words: str) -> Agent:
    """An agent with a helper that has a helper; each says by which instructions it works."""

    def agent(name: str, *tools: Any) -> Agent:
        return Agent(name=name, model="scripted:x", description=name, instructions=words, tools=list(tools))

    aide = agent("aide")
    return agent("boss", publish, agent("helper", aide.as_tool()).as_tool())


def _say_instructions(request: ModelRequest) -> Any:
    names = [each.name for each in request.tools]
    if request.config.model == "x" and "publish" in names and request.step == 1:
        return calls("publish", price=5)
    heard = request.messages[-1]
    if names and (heard.role != "tool" or (names[0] == "publish" and request.step == 2)):
        return calls(names[-1], input="go")
    below = f" {heard.text}" if heard.role == "tool" else ""
    return says(f"{request.instructions}{below}")


async def test_tree_keeps_what_its_root_pinned(serve: Serve) -> None:
    """After a deploy, runs below get the specs that their root has pinned: the worker asks the real parent."""
    models = {"scripted": ScriptedModel(_say_instructions)}
    async with serve(_chain("old"), models=models) as client:
        run = await client.start("boss", "go")
        await until_status(client, run.id, "waiting_approval")
    async with serve(_chain("new"), models=models) as client, asyncio.timeout(60):
        run = client.get(run.id)
        await run.resolve_approval("call-1-1", allow=True)
        assert (await run.result()).output == "old old old"
        assert (await client.run("helper", "go")).output == "new new"


async def test_redriven_run_keeps_its_spec(serve: Serve) -> None:
    """A parked run that goes on with another model after a deploy keeps the rest of what it has pinned itself."""

    def script(request: ModelRequest) -> Any:
        if request.config.model == "x":
            return fails("authentication", "the key is wrong")
        return says(request.instructions)

    models = {"scripted": ScriptedModel(script)}

    def clerk(words: str) -> Agent:
        return Agent(name="clerk", model="scripted:x", instructions=words)

    async with serve(clerk("old"), models=models) as client:
        kept, renewed = [await client.start("clerk", "go") for _ in range(2)]
        for run in (kept, renewed):
            await until_status(client, run.id, "parked")
    async with serve(clerk("new"), models=models) as client, asyncio.timeout(60):
        await client.get(kept.id).redrive(model="scripted:y")
        await client.get(renewed.id).redrive(model="scripted:y", newest=True)
        assert (await client.get(kept.id).result()).output == "old"
        assert (await client.get(renewed.id).result()).output == "new"
