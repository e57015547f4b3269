"""Agents with their fake model and their tool, and the workflows that run them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, RunContext, UsageLimits
from pydantic_ai.durable_exec.temporal import AgentEventStream, PydanticAIWorkflow, TemporalDurability
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.usage import RequestUsage, RunUsage
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from proofs.benchmarks.kit import TOOL, Answer, Job, ask, result, step_of
    from proofs.benchmarks.subjects.pydantic_models import REAL_MODEL

UNLIMITED = UsageLimits(request_limit=None)


def _next_answer(messages: list[ModelMessage]) -> tuple[Job, int, Answer]:
    """Return the job, the number of its finished steps, and the model's next answer."""
    job = Job.of(str(messages[0].parts[0].content))  # type: ignore[union-attr]
    parts = (part for message in reversed(messages) for part in message.parts)
    newest = next((part for part in parts if isinstance(part, ToolReturnPart)), None)
    done = step_of(None if newest is None else newest.model_response_str())
    return job, done, ask(job, done)


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask for the tool calls of the next step, or answer."""
    _, done, answer = _next_answer(messages)
    calls = [ToolCallPart(TOOL, call, f"c{done + 1}-{n}") for n, call in enumerate(answer.calls, 1)]
    return ModelResponse(
        parts=[*calls] or [TextPart(answer.text)], usage=RequestUsage(input_tokens=1000, output_tokens=20)
    )


async def _stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Ask for the tool calls of the next step, or stream the answer word by word."""
    job, done, answer = _next_answer(messages)
    for n, call in enumerate(answer.calls, 1):
        yield {n: DeltaToolCall(TOOL, json.dumps(call), tool_call_id=f"c{done + 1}-{n}")}
    if answer.calls:
        return
    began = time.perf_counter()
    for n in range(job.tokens):
        yield f"{' ' if n else ''}{time.time():.4f}"
        if job.rate:
            await asyncio.sleep(max(0.0, began + (n + 1) / job.rate - time.perf_counter()))


async def lookup(step: int, call: int, size: int) -> str:
    """Look something up.

    Args:
        step: the step.
        call: the call within the step.
        size: bytes to answer.

    """
    return result(step, call, size)


def _continue(ctx: RunContext[None]) -> None:
    """Go on in a fresh history, as the framework asks when the server suggests it."""
    workflow.continue_as_new(args=[None, ctx.messages, ctx.usage])


def _agent(name: str, durability: TemporalDurability[None]) -> Agent[None, str]:
    return Agent(
        REAL_MODEL or FunctionModel(_answer, stream_function=_stream),
        name=name,
        instructions="You look things up.",
        tools=[lookup],
        capabilities=[durability],
    )


STREAMED: TemporalDurability[Any] = TemporalDurability(event_stream_topic="events")

bench = _agent("bench", TemporalDurability(continue_as_new=_continue))
streaming = _agent("streaming", STREAMED)


@workflow.defn
class PydanticAgent(PydanticAIWorkflow):
    """Workflow that asks an agent a question."""

    __pydantic_ai_agents__ = (bench,)

    @workflow.run
    async def run(
        self, prompt: str | None, messages: list[ModelMessage] | None = None, usage: RunUsage | None = None
    ) -> str:
        """Ask the agent, or continue from the messages so far."""
        ended = await bench.run(prompt, message_history=messages, usage=usage, usage_limits=UNLIMITED)
        return ended.output


@workflow.defn
class PydanticStream(PydanticAIWorkflow):
    """Workflow that asks an agent a question, and publishes its events."""

    __pydantic_ai_agents__ = (streaming,)

    @workflow.init
    def __init__(self, prompt: str) -> None:
        self.events = AgentEventStream()

    @workflow.run
    async def run(self, prompt: str) -> str:
        """Ask the agent."""
        async with self.events:
            ended = await streaming.run(prompt, usage_limits=UNLIMITED)
        return ended.output
