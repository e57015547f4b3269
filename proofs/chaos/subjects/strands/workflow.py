"""Workflow that plays a task."""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.strands_agents import TemporalAgent
from temporalio.strands_agents.workflow import activity_as_tool

with workflow.unsafe.imports_passed_through():
    from proofs.chaos.subjects import MODEL_TIMEOUT_SECONDS, TOOL_TIMEOUT_SECONDS
    from proofs.chaos.subjects.strands.tools import CATALOGUE, TOOLS


@workflow.defn(name="ChaosTask")
class ChaosTask:
    """Workflow that asks an agent turn after turn."""

    @workflow.run
    async def run(self, task: dict[str, Any]) -> list[str]:
        """Return the last words of each turn."""
        names = [tool["name"] for tool in CATALOGUE.tools_of(tuple(task["classes"]))]
        agent = TemporalAgent(
            model="scripted",
            start_to_close_timeout=timedelta(seconds=MODEL_TIMEOUT_SECONDS),
            heartbeat_timeout=timedelta(seconds=5),
            system_prompt="You do what you are asked to, with your tools.",
            tools=[
                activity_as_tool(TOOLS[name], start_to_close_timeout=timedelta(seconds=TOOL_TIMEOUT_SECONDS))
                for name in names
            ],
            callback_handler=None,
        )
        return [str(await agent.invoke_async(question)).strip() for question in task["questions"]]
