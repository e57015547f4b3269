"""`running()` in a user's tests: a worker apart from all others, and nobody who would resume a parked run."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, DefinitionError, Graph, Limits, RunFailed, Swarm
from perdure.context import Summary
from perdure.limits import GraphLimits
from perdure.members import Member
from perdure.model import Model, ModelRequest
from perdure.settings import load_settings
from perdure.starter.client.connect import Client
from perdure.testing import ScriptedModel, calls, fails, running, says
from perdure.wire.names import TASK_QUEUE
from perdure.workers.dev.server import DevServer
from perdure.workers.running import serving
from tests.conftest import HANGS, until_status


@pytest.mark.parametrize("given", ["address", "settings"])
async def test_test_and_worker_keep_their_runs(server: DevServer, tmp_path: Path, given: str) -> None:
    """A test on a server where a worker serves the usual queue takes no run of it, and loses none."""
    desk, tried = (Agent(name=name, model="scripted:x") for name in ("desk", "tried"))
    settings = load_settings(home=tmp_path, address=server.address)
    more: dict[str, Any] = {"settings": settings} if given == "settings" else {}
    async with (
        asyncio.timeout(HANGS),
        serving([desk], models=_answers("worker"), address=server.address, settings=settings) as (
            temporal,
            queue,
        ),
        running([tried], models=_answers("test"), address=server.address, **more) as client,
    ):
        assert queue == TASK_QUEUE != client.task_queue
        real = Client(temporal, task_queue=queue)
        ends = await asyncio.gather(
            *(client.run("tried", "Hi.") for _ in range(5)), *(real.run("desk", "Hi.") for _ in range(5))
        )
    assert Counter((end.agent, end.output) for end in ends) == {("tried", "test"): 5, ("desk", "worker"): 5}


def _answers(text: str) -> dict[str, ScriptedModel]:
    return {"scripted": ScriptedModel(lambda _: says(text))}


def _refused(request: ModelRequest) -> Any:
    if request.config.model == "boss":
        if request.step == 1:
            return calls("clerk", input="Do it.")
        return says(request.messages[-1].tool_results[0].text)
    return fails("authentication", "the key sesame-7 was refused")


CLERK = Agent(name="clerk", model="scripted:x", description="Works.")
CARRIERS: dict[str, Member] = {
    "run": CLERK,
    "swarm": Swarm(name="team", agents=[CLERK]),
    "graph": Graph(name="graph", nodes={"only": CLERK}, entry="only"),
    "helper": Agent(name="boss", model="scripted:boss", tools=[CLERK.as_tool()]),
}


async def test_run_that_would_park_fails() -> None:
    """`result()` comes back with the reason, wherever in a tree the model refuses; so does a session's turn."""
    async with (
        asyncio.timeout(HANGS),
        running([*CARRIERS.values()], models={"scripted": ScriptedModel(_refused)}) as client,
    ):
        for carrier, member in CARRIERS.items():
            if carrier == "helper":
                assert "sesame-7" in str((await client.run(member.name, "Hi.")).output)
                continue
            with pytest.raises(RunFailed, match="sesame-7"):
                await client.run(member.name, "Hi.")
        reply = await (await client.session("talk", agent="clerk")).say("Hi.")
        assert reply.error is not None
        assert "sesame-7" in reply.error.message


async def test_run_parks_where_the_test_asks_for_it() -> None:
    models = {"scripted": ScriptedModel(_refused)}
    async with asyncio.timeout(HANGS), running([CLERK], models=models, parked="wait") as client:
        run = await client.start("clerk", "Hi.")
        await until_status(client, run.id, "parked")


def agent(**fields: Any) -> Agent:
    """Return an agent with these fields."""
    named: dict[str, Any] = {"name": "clerk", "model": "scripted:x", **fields}
    return Agent(**named)


UNSERVABLE: dict[str, tuple[Member, str]] = {
    "model": (
        agent(model="antropic:x"),
        "model 'antropic:x': there is no provider 'antropic'; the providers are ",
    ),
    "fallback": (agent(fallbacks=["opneai:x"]), "there is no provider 'opneai'"),
    "summary": (agent(context=Summary(model="opneai:x")), "there is no provider 'opneai'"),
    "below": (
        Swarm(
            name="team",
            agents=[agent(tools=[agent(name="deep", model="nobody:x", description="Digs.").as_tool()])],
        ),
        "agent 'deep': model 'nobody:x': there is no provider 'nobody'",
    ),
    "price": (
        agent(model="house:x", limits=Limits(cost_usd=1)),
        "has a cost limit, and the price of house:x is not known",
    ),
    "price below": (
        Graph(name="g", nodes={"a": agent(model="house:x")}, entry="a", limits=GraphLimits(cost_usd=1)),
        "the price of house:x is not known",
    ),
}


async def test_worker_refuses_what_no_run_could_use(server: DevServer) -> None:
    """An unknown provider, or a limit on cost without a price, does not wait for the first customer."""
    scripted: Model = ScriptedModel([says("Hi.")])
    for member, words in UNSERVABLE.values():
        with pytest.raises(DefinitionError, match=words):
            async with running(
                [member], models={"scripted": scripted, "house": scripted}, address=server.address
            ):
                raise AssertionError("the worker has started")
