"""Bare workflow: a model activity and a tool activity a step."""

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from proofs.benchmarks.kit import Job, ask, result

_AT_MOST = timedelta(minutes=1)


@activity.defn
async def ask_model(prompt: str, done: int) -> list[dict[str, int]]:
    """Return the arguments of the tool calls that the model asks for; none at the end."""
    return list(ask(Job.of(prompt), done).calls)


@activity.defn
async def call_tool(step: int, call: int, size: int) -> str:
    """Return the tool's result."""
    return result(step, call, size)


@workflow.defn
class Floor:
    """Workflow of two activities a step, and a last model activity."""

    def __init__(self) -> None:
        self.allowed = False

    @workflow.run
    async def run(self, prompt: str, done: int = 0) -> str:
        """Count steps until the model asks for no more tool calls."""
        job = Job.of(prompt)
        while True:
            wanted = await workflow.execute_activity(
                ask_model, args=[prompt, done], start_to_close_timeout=_AT_MOST
            )
            if not wanted:
                return f"done after {done} steps"
            if (job.approval and done == 0) or job.hold_at == done + 1:
                await workflow.wait_condition(lambda: self.allowed)
            async with asyncio.TaskGroup() as group:
                for arguments in wanted:
                    group.create_task(self._child(arguments) if job.children else self._call(arguments))
            done += 1
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(args=[prompt, done])

    async def _call(self, arguments: dict[str, int]) -> None:
        await workflow.execute_activity(
            call_tool,
            args=[arguments["step"], arguments["call"], arguments["size"]],
            start_to_close_timeout=_AT_MOST,
        )

    async def _child(self, arguments: dict[str, int]) -> None:
        name = f"{workflow.info().workflow_id}/{arguments['call']}"
        await workflow.execute_child_workflow(Floor.run, Job(id=name, steps=0).prompt, id=name)

    @workflow.signal
    def allow(self) -> None:
        """Receive the person's approval."""
        self.allowed = True
