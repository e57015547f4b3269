"""Limits bind the whole tree: what siblings spend together never passes what their root may spend."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, Limits, tool
from perdure.graph import Graph
from perdure.limits import GraphLimits, SwarmLimits
from perdure.model import ModelConfig, ModelRequest
from perdure.swarm import Swarm
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import HANGS, Gate, Serve, until_queried, until_status


@pytest.fixture(params=[1000, pytest.param(0, marks=pytest.mark.cold)], ids=["cached", "replayed"])
def worker(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of the worker: each behaviour also holds when every task is a replay."""
    return {"max_cached_workflows": request.param}


_SMALL = ModelConfig(name="scripted:worker", max_tokens=200)


@tool
async def look(n: int) -> str:
    """Look."""
    return f"seen {n}"


def _worker(**changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": "worker", "model": _SMALL, "description": "Works.", "tools": [look]}
    return Agent(**{**settings, **changed})


def _boss(of: Agent, **changed: Any) -> Agent:
    settings: dict[str, Any] = {
        "name": "boss",
        "model": ModelConfig(name="scripted:boss", max_tokens=3000),
        "tools": [of.as_tool()],
    }
    return Agent(**{**settings, **changed})


def _script(fan_out: int, looks: int) -> ScriptedModel:
    """A boss that calls so many workers at once; each looks so many times."""

    def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            if request.step == 1 and request.tool_choice == "auto":
                return [calls("worker", input=f"job {n}") for n in range(fan_out)]
            return says("all done")
        if request.tool_choice == "none" or request.step > looks:
            return says("did what I could")
        return calls("look", n=request.step)

    return ScriptedModel(answer)


async def test_sub_agents_share_cost_budget(serve: Serve) -> None:
    """Forty sub-agents share a cost budget; `make stress` has a hundred, twenty times, under kill -9."""
    model = _script(40, 5)
    boss = _boss(_worker(), limits=Limits(cost_usd=0.05))
    async with serve(boss, models={"scripted": model}) as client:
        result = await client.run("boss", "go")
    assert result.cost_microusd is not None
    assert 0 < result.cost_microusd <= 50_000
    assert result.stop_reason in ("end_turn", "cost_budget")


async def test_sub_agents_share_tool_call_cap(serve: Serve) -> None:
    made = Counter[str]()

    @tool(name="look")
    async def counted(n: int) -> str:
        """Look."""
        made["look"] += 1
        return "seen"

    boss = _boss(_worker(tools=[counted]), limits=Limits(tool_calls=40))
    async with serve(boss, models={"scripted": _script(10, 20)}) as client:
        result = await client.run("boss", "go")
    assert result.tool_calls <= 40
    assert made["look"] == result.tool_calls - 10, "ten calls were the boss's own"
    assert made["look"] >= 25, "what one did not need, others could use"


async def test_unused_budget_goes_to_siblings(serve: Serve) -> None:
    """One greedy worker gets all that the modest ones leave."""

    def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            jobs = ["greedy", *["modest"] * 4]
            return [calls("worker", input=job) for job in jobs] if request.step == 1 else says("done")
        greedy = request.messages[0].text == "greedy"
        if request.tool_choice == "none" or not greedy or request.step > 20:
            return says("done")
        return calls("look", n=request.step)

    boss = _boss(_worker(), limits=Limits(tool_calls=25))
    async with serve(boss, models={"scripted": ScriptedModel(answer)}) as client:
        result = await client.run("boss", "go")
    assert result.tool_calls == 25, "five calls of the boss, twenty of the greedy one"
    assert result.stop_reason == "end_turn"


async def test_failed_child_usage_reaches_root(serve: Serve, worker: dict[str, Any]) -> None:
    def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            return calls("worker", input="x") if request.step == 1 else says("it failed")
        if request.step == 2:
            from perdure.errors import ModelError

            raise ModelError("bad_request", "no")
        return calls("look", n=1)

    boss = _boss(_worker(on_failure="fail"))
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        run = await client.start("boss", "go")
        result = await run.result()
        own = await run.steps()
        child = await client.get(f"{run.id}/~worker-1-1").steps()
    assert result.output == "it failed"
    used = sum(step.usage.total_tokens for step in (*own, *child))
    assert result.usage.total_tokens == used
    assert result.tool_calls == 2


async def test_cancel_ends_descendants(serve: Serve, worker: dict[str, Any]) -> None:
    """Cancelling the root ends every descendant, and their usage is known."""
    gate = Gate()

    async def answer(request: ModelRequest) -> Any:
        match request.config.model:
            case "boss":
                return [calls("middle", input="x"), calls("middle", input="y")]
            case "middle":
                return [calls("worker", input="x"), calls("worker", input="y")]
            case _:
                if request.step == 1:
                    return calls("look", n=1)
                await gate.wait()
                return says("never")

    middle = Agent(name="middle", model="scripted:middle", description="m", tools=[_worker().as_tool()])
    boss = Agent(name="boss", model="scripted:boss", tools=[middle.as_tool()])
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        run = await client.start("boss", "go")
        leaves = [f"{run.id}/~middle-1-{m}/~worker-1-{w}" for m in (1, 2) for w in (1, 2)]
        for leaf in leaves:
            await _until_started(client, leaf)
        async with asyncio.timeout(HANGS):
            await gate.reached.wait()
            for leaf in leaves:
                await _until_step(client, leaf, 2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await run.cancel()
        result = await run.result()
        for leaf in leaves:
            await client.get(leaf).result()
        took = loop.time() - began
        parts = [step for leaf in leaves for step in await client.get(leaf).steps()]
        parts += [step for m in (1, 2) for step in await client.get(f"{run.id}/~middle-1-{m}").steps()]
        parts += await run.steps()
    assert result.stop_reason == "cancelled"
    # On a machine so busy that last words come too late, the sum says that it is not whole.
    assert (
        result.usage.total_tokens == sum(part.usage.total_tokens for part in parts) or result.usage.estimated
    )
    assert took < HANGS, "a bound on hanging; the benchmark measures it"


async def _until_started(client: Any, run_id: str) -> None:
    async def there() -> bool:
        try:
            return bool((await client.get(run_id).status()).step >= 1)
        except Exception:
            return False

    await until_queried(there)


async def _until_step(client: Any, run_id: str, step: int) -> None:
    async def there() -> bool:
        return bool((await client.get(run_id).status()).step >= step)

    await until_queried(there)


async def test_stop_lets_descendants_finish(serve: Serve, worker: dict[str, Any]) -> None:
    gate = Gate()

    async def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            return calls("worker", input="x")
        if request.step == 1:
            return says("half of it. ") + calls("look", n=1)
        await gate.wait()
        return says("never")

    boss = _boss(_worker())
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        run = await client.start("boss", "go")
        await asyncio.wait_for(gate.reached.wait(), HANGS)
        await run.stop()
        result = await run.result()
        child = await client.get(f"{run.id}/~worker-1-1").result()
        transcript = await run.transcript()
    assert result.stop_reason == "stopped"
    assert child.stop_reason == "stopped"
    assert child.output == "half of it. "
    assert "half of it" in transcript[-1].text
    assert result.usage.total_tokens > child.usage.total_tokens > 0


async def test_pausing_the_root_pauses_its_children(serve: Serve, worker: dict[str, Any]) -> None:
    gate = Gate()

    async def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            return calls("worker", input="x") if request.step == 1 else says("done")
        if request.step == 1:
            await gate.wait()
            return calls("look", n=1)
        return says("done")

    boss = _boss(_worker())
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        run = await client.start("boss", "go")
        await asyncio.wait_for(gate.reached.wait(), HANGS)
        await run.pause()
        child = f"{run.id}/~worker-1-1"
        await until_status(client, child, "paused")
        gate.opened.set()
        await run.resume()
        result = await run.result()
    assert result.output == "done"


async def test_root_deadline_holds_in_children(serve: Serve, worker: dict[str, Any]) -> None:
    gate = Gate()

    async def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            return calls("worker", input="x")
        await gate.wait()
        return says("never")

    boss = _boss(_worker(), limits=Limits(timeout=timedelta(seconds=1)))
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        run = await client.start("boss", "go")
        result = await run.result()
        child = await client.get(f"{run.id}/~worker-1-1").result()
    assert result.stop_reason == "deadline"
    assert child.stop_reason in ("deadline", "stopped")


@pytest.mark.parametrize("kind", ["swarm", "graph"])
async def test_team_budget_keeps_partial_results(serve: Serve, worker: dict[str, Any], kind: str) -> None:
    def answer(request: ModelRequest) -> Any:
        if request.tool_choice == "none":
            return says("last word")
        return calls("look", n=request.step)

    one = _worker(limits=Limits(steps=None))
    swarm = Swarm(name="swarm", agents=[one], limits=SwarmLimits(tool_calls=7))
    graph = Graph(name="graph", nodes={"one": one}, entry="one", limits=GraphLimits(tool_calls=7))
    async with serve(
        swarm if kind == "swarm" else graph, models={"scripted": ScriptedModel(answer)}
    ) as client:
        result = await client.run(kind, "go")
    assert result.tool_calls == 7
    assert result.output == "last word"


async def test_answers_may_come_by_completion(serve: Serve, worker: dict[str, Any]) -> None:
    gates = {name: Gate() for name in ("slow", "quick")}
    heard: list[str] = []

    async def answer(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            if request.step == 1:
                return [calls("worker", input="slow"), calls("worker", input="quick")]
            news = [m.text for m in request.messages if m.role == "user"][1:]
            heard.append(news[-1] if news else "")
            if len(news) == 1:
                gates["slow"].opened.set()
            return says(f"heard {len(news)}")
        await gates[request.messages[0].text].wait()
        return says(f"{request.messages[0].text} is done")

    called = _worker().as_tool(collect="completion")
    boss = Agent(name="boss", model="scripted:boss", tools=[called])
    gates["quick"].opened.set()
    async with serve(boss, models={"scripted": ScriptedModel(answer)}, worker=worker) as client:
        result = await client.run("boss", "go")
    assert result.output == "heard 2"
    told = [line for line in heard if line]
    assert "quick is done" in told[0]
    assert "slow is done" in told[-1]
