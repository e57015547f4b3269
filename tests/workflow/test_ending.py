"""Stop, cancel and deadline, wherever the run happens to be: it ends at once, and says how."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import pytest

from perdure import Agent, Limits, tool
from perdure.messages import Text, ToolCall, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply, TextDelta, UsageSoFar
from perdure.starter.client.run import Run
from perdure.wire.results import RunResult

from ..conftest import HANGS, Gate, Serve, until_status

Where = Literal["first model call", "later model call", "tool", "approval"]
How = Literal["stop", "cancel", "deadline"]
WITHIN = 2.0
"""Seconds, on a machine that has the time to run a test."""


@dataclass
class Hanging:
    """A provider that begins an answer and never ends it, when it is to hang."""

    hang_at: int | None
    gate: Gate = field(default_factory=Gate)
    calls: int = 0

    def check(self, config: ModelConfig) -> None: ...

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        self.calls += 1
        yield UsageSoFar(usage=Usage(input_tokens=100))
        if request.step == self.hang_at:
            yield TextDelta(text="I think")
            await self.gate.wait()
        call = ToolCall(id="x", name="work", arguments={})
        yield Reply(
            parts=(Text(text="Let me see."), call),
            stop="tool_calls",
            usage=Usage(input_tokens=100, output_tokens=5),
        )


@pytest.mark.parametrize("how", ["stop", "cancel", "deadline"])
@pytest.mark.parametrize("where", ["first model call", "later model call", "tool", "approval"])
async def test_run_ends_within_two_seconds(serve: Serve, where: Where, how: How) -> None:
    """A run ends within two seconds, wherever it is."""
    in_tool = Gate()

    @tool(approval=where == "approval")
    async def work() -> str:
        """Work."""
        if where == "tool":
            await in_tool.wait()
        return "worked"

    hang_at = {"first model call": 1, "later model call": 2}.get(where)
    model = Hanging(hang_at)
    limits = Limits(timeout=timedelta(seconds=3)) if how == "deadline" else Limits()
    agent = Agent(name="a", model="hanging:x", tools=[work], limits=limits)
    async with serve(agent, models={"hanging": model}) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        run = await client.start("a", "go")
        await _arrive(where, model, in_tool, run, client)
        # A machine that is busy with other things takes its time on the way there as well.
        within = WITHIN + 5 * (loop.time() - began)
        result = await _end(how, run, within)
        assert result.stop_reason == {"stop": "stopped", "cancel": "cancelled", "deadline": "deadline"}[how]
        status = await run.status()
        assert status.status == ("cancelled" if how == "cancel" else "completed")
        assert result.output == ("I think" if hang_at else "Let me see.")
        if hang_at:
            assert model.gate.left.is_set(), "the provider's stream was closed"
            assert result.usage.input_tokens == 100 * hang_at, "a call that was cut has been paid for"
            assert result.usage.estimated
        if where == "tool":
            async with asyncio.timeout(within):
                await in_tool.left.wait()


async def _arrive(where: Where, model: Hanging, in_tool: Gate, run: Run, client: object) -> None:
    async with asyncio.timeout(HANGS):
        match where:
            case "first model call" | "later model call":
                await model.gate.reached.wait()
            case "tool":
                await in_tool.reached.wait()
            case "approval":
                await until_status(client, run.id, "waiting_approval")  # type: ignore[arg-type]


async def _end(how: How, run: Run, within: float) -> RunResult:
    match how:
        case "stop":
            await run.stop()
        case "cancel":
            await run.cancel()
        case "deadline":
            pass
    async with asyncio.timeout(within + (3 if how == "deadline" else 0)):
        return await run.result()
