"""Fake model as a LangChain chat model, and the tool that it calls."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, tool

from proofs.benchmarks.kit import Job, ask, result, step_of
from proofs.benchmarks.kit.real import KEY, real


@tool
async def lookup(step: int, call: int, size: int) -> str:
    """Look something up.

    Args:
        step: the step.
        call: the call within the step.
        size: bytes to answer.

    """
    return result(step, call, size)


class Fake(BaseChatModel):
    """Model without latency."""

    @property
    def _llm_type(self) -> str:
        return "fake"

    def bind_tools(self, tools: Sequence[BaseTool], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Return the model: it knows its tools."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer = _next_message(messages)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        job, answer = _job(messages), _next_message(messages)
        if answer.tool_calls:
            chunk = AIMessageChunk(
                content="", tool_calls=answer.tool_calls, usage_metadata=answer.usage_metadata
            )
            yield ChatGenerationChunk(message=chunk)
            return
        began = time.perf_counter()
        for n in range(job.tokens):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{' ' if n else ''}{time.time():.4f}"))
            if job.rate:
                await asyncio.sleep(max(0.0, began + (n + 1) / job.rate - time.perf_counter()))


def chat_model() -> BaseChatModel:
    """Return the fake, or in the suite `wire` LangChain's model of the API."""
    found = real()
    if found is None:
        return Fake()
    if found.api == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(model=found.model, api_key=KEY, base_url=found.address, max_tokens=8192)
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=found.model, api_key=KEY, base_url=f"{found.address}/v1")


def _job(messages: list[BaseMessage]) -> Job:
    return Job.of(messages[0].text)


def _next_message(messages: list[BaseMessage]) -> AIMessage:
    """Return the message with the tool calls of the next step, or with the answer."""
    results = (message.text for message in reversed(messages) if isinstance(message, ToolMessage))
    done = step_of(next(results, None))
    answer = ask(_job(messages), done)
    return AIMessage(
        content=answer.text,
        tool_calls=[
            ToolCall(type="tool_call", id=f"c{done + 1}-{n}", name=lookup.name, args=dict(call))
            for n, call in enumerate(answer.calls, 1)
        ],
        usage_metadata={"input_tokens": 1000, "output_tokens": 20, "total_tokens": 1020},
    )


MODEL = chat_model().bind_tools([lookup])
"""Model of the agent. Made here, as the workflow's sandbox does not run this module."""
