"""Limits: hard, checked before each call, and each an end like any other, never an exception."""

from typing import Any

import pytest

from perdure import Agent, InvalidRequest, Limits, ModelConfig, RunFailed, tool
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import Serve

USED = Usage(input_tokens=1000, output_tokens=100)


class Recorder:
    """A script that works for ever, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ModelRequest] = []

    def __call__(self, request: ModelRequest) -> Any:
        self.asked.append(request)
        if request.tool_choice == "none":
            return says("that is all I know", usage=USED)
        call = calls("work", n=request.step)
        return Line(text=f"step {request.step}", calls=call.calls, usage=USED)


@tool
async def work(n: int) -> str:
    """Work."""
    return "worked"


@pytest.mark.parametrize(
    ("limits", "reason", "steps", "output"),
    [
        (Limits(steps=3), "max_steps", 3, "step 3"),
        (Limits(tool_calls=2), "max_tool_calls", 4, "that is all I know"),
        (Limits(per_tool={"work": 1}), "max_tool_calls", 3, "that is all I know"),
        (Limits(input_tokens=2500), "token_budget", 2, "step 2"),
        (Limits(output_tokens=250), "token_budget", 3, "step 3"),
        (Limits(total_tokens=3500), "token_budget", 3, "step 3"),
        (Limits(cost_usd=0.0150), "cost_budget", 3, "step 3"),
    ],
)
async def test_limit_gives_reason_and_partial_answer(
    serve: Serve, limits: Limits, reason: str, steps: int, output: str
) -> None:
    model = Recorder()
    agent = Agent(name="a", model="scripted:x", tools=[work], limits=limits)
    async with serve(agent, models={"scripted": ScriptedModel(model)}) as client:
        result = await client.run("a", "go")
    assert (result.stop_reason, result.steps, result.output) == (reason, steps, output)
    assert len(model.asked) == steps
    assert result.error is None
    if limits.tool_calls is not None:
        assert result.tool_calls == limits.tool_calls
    if limits.cost_microusd is not None:
        assert result.cost_microusd is not None
        assert result.cost_microusd <= limits.cost_microusd
    if limits.total_tokens is not None:
        assert result.usage.total_tokens <= limits.total_tokens


async def test_budget_bounds_reply(serve: Serve) -> None:
    """A reply is bounded by what the budget leaves."""
    model = Recorder()
    agent = Agent(name="a", model="scripted:x", tools=[work], limits=Limits(output_tokens=250))
    async with serve(agent, models={"scripted": ScriptedModel(model)}) as client:
        await client.run("a", "go")
    assert [request.max_tokens for request in model.asked] == [250, 150, 50]


async def test_calls_over_limit_are_denied(serve: Serve) -> None:
    """Calls over the limit are denied, and the rest runs."""
    made: list[int] = []

    @tool(name="work")
    async def counted(n: int) -> str:
        """Work."""
        made.append(n)
        return "worked"

    def script(request: ModelRequest) -> Any:
        return says("ok") if request.step == 2 else [calls("work", n=n) for n in range(5)]

    agent = Agent(name="a", model="scripted:x", tools=[counted], limits=Limits(tool_calls=3))
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "go")
        result = await run.result()
        results = (await run.transcript())[2].tool_results
    assert sorted(made) == [0, 1, 2]
    assert [r.is_error for r in results] == [False, False, False, True, True]
    assert (result.stop_reason, result.output, result.tool_calls) == ("max_tool_calls", "ok", 3)


async def test_cost_limit_needs_known_price(serve: Serve) -> None:
    """A cost limit without a known price is rejected at once."""
    agent = Agent(name="a", model="ollama:nobody-knows", limits=Limits(cost_usd=1))
    async with serve(agent) as client:
        with pytest.raises(RunFailed, match="price of ollama:nobody-knows is not known") as failed:
            await client.run("a", "go")
    assert failed.value.kind == "InvalidRequest"


async def test_unknown_cost_is_never_zero(serve: Serve) -> None:
    """The cost of an unknown model is unknown, never 0."""
    agent = Agent(name="a", model=ModelConfig(name="other:x"))
    async with serve(agent, models={"other": ScriptedModel([says("hi")])}) as client:
        result = await client.run("a", "go")
    assert result.cost_microusd is None
    assert result.usage.total_tokens > 0


async def test_request_cost_limit_needs_price(serve: Serve) -> None:
    agent = Agent(name="a", model=ModelConfig(name="other:x"))
    async with serve(agent, models={"other": ScriptedModel([says("hi")])}) as client:
        with pytest.raises(RunFailed, match="not known"):
            await client.run("a", "go", limits=Limits(cost_usd=1))
        with pytest.raises(InvalidRequest):
            await client.start("a", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
