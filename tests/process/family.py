"""A supervisor and its many sub-agents, for a worker that is killed: each call is written down."""

import asyncio
import os
from typing import Any

from perdure import Agent, Limits, ToolContext, tool
from perdure.model import ModelConfig, ModelRequest
from perdure.testing import ScriptedModel, calls, says

from .crew import note, take_effect

CHILDREN = int(os.environ.get("FAMILY_CHILDREN", "100"))
LOOKS = 4
BUDGET_USD = 1.0
TOOL_CALLS = 400
"""Less than the hundred sub-agents would like to make: 100 calls of them, and 400 of their own."""


@tool(effect="write")
async def work(n: int, context: ToolContext) -> str:
    """Work."""
    await asyncio.sleep(0.02)
    return take_effect(context, "work")


async def _answer(request: ModelRequest) -> Any:
    await asyncio.sleep(0.02)
    if request.config.model == "boss":
        if request.step == 1:
            return [calls("worker", input=f"job {n}") for n in range(CHILDREN)]
        return says("all done")
    note("model", request.user or "", str(request.step))
    if request.tool_choice == "none" or request.step > LOOKS:
        return says("done")
    return calls("work", n=request.step)


worker = Agent(
    name="worker",
    model=ModelConfig(name="scripted:worker", max_tokens=100),
    description="Does one job.",
    tools=[work],
)
boss = Agent(
    name="boss",
    model=ModelConfig(name="scripted:boss", max_tokens=4000),
    tools=[worker.as_tool()],
    limits=Limits(cost_usd=BUDGET_USD, tool_calls=TOOL_CALLS * CHILDREN // 100),
)

agents = [boss]
models = {"scripted": ScriptedModel(_answer)}
