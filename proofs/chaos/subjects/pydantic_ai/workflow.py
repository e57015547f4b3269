"""Workflow that plays a task."""

from typing import Any

from pydantic_ai import UsageLimits
from pydantic_ai.durable_exec.temporal import PydanticAIWorkflow
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from proofs.chaos.subjects.pydantic_ai.agents import AGENTS


@workflow.defn(name="ChaosTask")
class ChaosTask(PydanticAIWorkflow):
    """Workflow that asks an agent turn after turn."""

    __pydantic_ai_agents__ = tuple(AGENTS.values())

    @workflow.run
    async def run(self, task: dict[str, Any]) -> list[str]:
        """Return the last words of each turn."""
        agent, replies, messages = AGENTS[tuple(task["classes"])], list[str](), None
        for question in task["questions"]:
            result = await agent.run(
                question, message_history=messages, usage_limits=UsageLimits(request_limit=None)
            )
            messages = result.all_messages()
            replies.append(result.output)
        return replies
