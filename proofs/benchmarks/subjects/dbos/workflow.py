"""Agents, and the workflows that run them; DBOS needs all of them defined before its launch."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from dbos import DBOS
from pydantic_ai import (
    Agent,
    AgentStreamEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    RunContext,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UsageLimits,
    UserPromptPart,
)
from pydantic_ai.durable_exec.dbos import DBOSDurability
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.usage import RequestUsage

from proofs.benchmarks.kit import TOOL, Answer, Job, ask, result, step_of
from proofs.benchmarks.subjects.pydantic_models import REAL_MODEL

TEXT = "text"
"""Name of the stream for the model's text."""

_NO_CAP = UsageLimits(request_limit=None)


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    _, answer = _parse_request(messages)
    calls: list[Any] = [ToolCallPart(TOOL, dict(call), _call_id(call)) for call in answer.calls]
    usage = RequestUsage(input_tokens=1000, output_tokens=20)
    return ModelResponse(parts=calls or [TextPart(answer.text)], usage=usage)


async def _stream(
    messages: list[ModelMessage], info: AgentInfo
) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    job, answer = _parse_request(messages)
    if answer.calls:
        for n, call in enumerate(answer.calls):
            arguments = ToolCallPart(TOOL, dict(call)).args_as_json_str()
            yield {n: DeltaToolCall(TOOL, arguments, tool_call_id=_call_id(call))}
        return
    began = time.perf_counter()
    for n in range(1, job.tokens + 1):
        yield f"{time.time():.4f}" + (" " if n < job.tokens else "")
        if job.rate:
            await asyncio.sleep(max(0.0, began + n / job.rate - time.perf_counter()))


def _parse_request(messages: Sequence[ModelMessage]) -> tuple[Job, Answer]:
    job = Job.of(_prompt(messages[0]))
    return job, ask(job, step_of(_newest_result(messages)))


def _prompt(message: ModelMessage) -> str:
    return "".join(str(part.content) for part in message.parts if isinstance(part, UserPromptPart))


def _newest_result(messages: Sequence[ModelMessage]) -> str | None:
    for message in reversed(messages):
        if isinstance(message, ModelRequest):
            for part in message.parts:
                if isinstance(part, ToolReturnPart):
                    return str(part.content)
    return None


def _call_id(call: dict[str, int]) -> str:
    return f"call-{call['step']}-{call['call']}"


async def _publish(context: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
    """Pass the model's text on to the run's stream, piece by piece."""
    async for event in events:
        match event:
            case PartStartEvent(part=TextPart(content=text)) if text:
                await DBOS.write_stream_async(TEXT, text)
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                await DBOS.write_stream_async(TEXT, text)
            case _:
                pass


@DBOS.step()
async def lookup(step: int, call: int, size: int) -> str:
    """Look something up.

    Args:
        step: The step.
        call: The call within the step.
        size: Bytes to answer.

    """
    return result(step, call, size)


def _agent(name: str, durability: DBOSDurability[None], **model: Any) -> Agent[None, str]:
    return Agent(
        REAL_MODEL or FunctionModel(**model),
        name=name,
        instructions="You look things up.",
        tools=[lookup],
        capabilities=[durability],
    )


_quiet = _agent("quiet", DBOSDurability(), function=_answer)
_heard = _agent("heard", DBOSDurability(event_stream_handler=_publish), stream_function=_stream)


@DBOS.workflow()
async def look_up(prompt: str) -> str:
    """Run the agent."""
    ended = await _quiet.run(prompt, usage_limits=_NO_CAP)
    return ended.output


@DBOS.workflow()
async def look_up_aloud(prompt: str) -> str:
    """Run the agent with a text that can be read while it grows."""
    ended = await _heard.run(prompt, usage_limits=_NO_CAP)
    return ended.output


MODEL = f"{_quiet.name}__model.request"
"""Name of the model's step; a streamed run has `heard__model.request_stream`."""
