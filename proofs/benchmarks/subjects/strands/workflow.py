"""Workflow of the agent, and its tool."""

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.contrib.workflow_streams import WorkflowStream
from temporalio.strands_agents import TemporalAgent
from temporalio.strands_agents.workflow import activity_as_tool

with workflow.unsafe.imports_passed_through():
    from proofs.benchmarks.kit import Job, result

TOPIC = "events"


@activity.defn
async def lookup(step: int, call: int, size: int) -> str:
    """Look something up.

    Args:
        step: the step.
        call: the call within the step.
        size: bytes to answer.

    """
    return result(step, call, size)


@workflow.defn
class StrandsWorkflow:
    """Workflow that asks an agent a question."""

    def __init__(self) -> None:
        self.stream = WorkflowStream()

    @workflow.run
    async def run(self, prompt: str) -> str:
        """Ask the agent."""
        agent = TemporalAgent(
            model="fake",
            start_to_close_timeout=timedelta(seconds=60),
            streaming_topic=TOPIC if Job.of(prompt).tokens else None,
            system_prompt="You look things up.",
            tools=[activity_as_tool(lookup, start_to_close_timeout=timedelta(seconds=30))],
            callback_handler=None,
        )
        return str(await agent.invoke_async(prompt))
