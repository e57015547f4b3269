"""Workflow of the agent, and its tool."""

from datetime import timedelta

from agents import Agent, Runner
from temporalio import activity, workflow
from temporalio.contrib.workflow_streams import WorkflowStream
from temporalio.openai_agents.workflow import activity_as_tool

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
class OpenAIAgent:
    """Workflow that asks an agent a question."""

    @workflow.init
    def __init__(self, prompt: str) -> None:
        self.stream = WorkflowStream()

    @workflow.run
    async def run(self, prompt: str) -> str:
        """Ask the agent."""
        agent = Agent(
            name="bench",
            instructions="You look things up.",
            tools=[activity_as_tool(lookup, start_to_close_timeout=timedelta(seconds=10))],
        )
        if not Job.of(prompt).tokens:
            return str((await Runner.run(agent, input=prompt, max_turns=None)).final_output)
        streamed = Runner.run_streamed(agent, prompt, max_turns=None)
        async for _ in streamed.stream_events():
            pass
        return str(streamed.final_output)
