"""Perdure as the harness sees it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from temporalio.worker import Worker

from perdure import Agent, Client, Limits, SlidingWindow, connect, tool
from perdure.errors import RunNotFound
from perdure.messages import Message, Text, ToolCall, ToolResult, Usage
from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest, Reply
from perdure.model import TextDelta as Heard
from perdure.settings import load_settings
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.events import TextDelta
from perdure.workers.connection import connect_temporal
from perdure.workers.plugin import PerdurePlugin
from proofs.benchmarks.kit import Answer, Job, Where, ask, result, step_of
from proofs.benchmarks.kit.real import KEY, REGION, Real, real


class Fake:
    """Provider without latency."""

    def check(self, config: ModelConfig) -> None:
        """Accept every configuration."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Ask for the tool calls of the next step, or answer."""
        job = Job.of(_text(request.messages[0]))
        newest = _newest_result(request.messages)
        done = job.steps if job.children and newest is not None else step_of(newest)
        answer = ask(job, done)
        if answer.calls or not job.tokens:
            yield _reply(answer, _tool_name(job, done + 1), job)
            return
        words: list[str] = []
        began = time.perf_counter()
        for n in range(job.tokens):
            words.append(f"{time.time():.4f}")
            yield Heard(text=words[-1] + " ")
            if job.rate:
                await asyncio.sleep(max(0.0, began + (n + 1) / job.rate - time.perf_counter()))
        yield _reply(Answer(text=" ".join(words)))


def _tool_name(job: Job, step: int) -> str:
    if job.children:
        return "helper"
    held = job.hold_at == step or (job.approval and step == 1)
    return "held_lookup" if held else "lookup"


def _reply(answer: Answer, name: str = "", job: Job | None = None) -> Reply:
    of_agent = {"input": Job(id="", steps=0).prompt}
    calls = [
        ToolCall(id=f"c{n}", name=name, arguments=of_agent if job and job.children else dict(call))
        for n, call in enumerate(answer.calls)
    ]
    parts = (Text(text=answer.text),) if answer.text else ()
    return Reply(
        parts=(*parts, *calls),
        stop="tool_calls" if calls else "end_turn",
        usage=Usage(input_tokens=1000, output_tokens=20),
    )


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, Text))


def _newest_result(messages: Sequence[Message]) -> str | None:
    for message in reversed(messages):
        for part in message.parts:
            if isinstance(part, ToolResult):
                return "".join(item.text for item in part.content if isinstance(item, Text))
    return None


@tool
async def lookup(step: int, call: int, size: int) -> str:
    """Look something up.

    Args:
        step: the step.
        call: the call within the step.
        size: bytes to answer.

    """
    return result(step, call, size)


@tool(approval=True)
async def held_lookup(step: int, call: int, size: int) -> str:
    """Look something up, once a person has approved."""
    return result(step, call, size)


def _agent(name: str, *tools: Any, preview: int = 16_384) -> Agent:
    return Agent(
        name=name,
        model="fake:none",
        instructions="You look things up.",
        tools=tools,
        limits=Limits(steps=None),
        result_preview_bytes=preview,
        tool_concurrency=100,
    )


AGENTS = (
    _agent("bench", lookup),
    _agent("big", lookup, preview=64 * 1024),
    _agent("held", lookup, held_lookup),
    _agent("boss", _agent("helper").as_tool("helper", "Helps.")),
)


def _real_agent(found: Real) -> Agent:
    """Return the agent that a worker of the suite `wire` serves: it shows all of its conversation, as its peers do."""
    context = SlidingWindow(tokens=None)
    return replace(_agent("bench", lookup), model=f"{found.api}:{found.model}", context=context)


def _real_model(found: Real) -> Model:
    from perdure.providers import AnthropicModel, BedrockModel, OpenAIModel

    match found.api:
        case "anthropic":
            return AnthropicModel(api_key=KEY, base_url=found.address)
        case "openai":
            return OpenAIModel(api_key=KEY, base_url=f"{found.address}/v1")
        case "bedrock":
            return BedrockModel(region=REGION, endpoint_url=found.address)
        case _:
            return ScriptedModel(_line)


def _line(request: ModelRequest) -> Line:
    job = Job.of(_text(request.messages[0]))
    answer = ask(job, step_of(_newest_result(request.messages)))
    return says(answer.text) if answer.text else calls("lookup", **answer.calls[0])


class Perdure:
    """Perdure with its default settings."""

    workflow = "AgentWorkflow"
    model = "call_model"
    tool = "call_tool"

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncGenerator[None]:
        """Run a worker with its default settings."""
        settings = load_settings(address=where.address, task_queue=where.queue, home=Path(where.folder))
        found = real()
        agents = (_real_agent(found),) if found else AGENTS
        models: dict[str, Model] = {found.api: _real_model(found)} if found else {"fake": Fake()}
        plugin = PerdurePlugin(agents, models=models, settings=settings)
        temporal = await connect_temporal(settings, [plugin])
        async with Worker(temporal, task_queue=where.queue, max_cached_workflows=where.cache):
            yield

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        settings = load_settings(address=where.address, task_queue=where.queue, home=Path(where.folder))
        return await connect(settings=settings)

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        held = job.approval or job.hold_at
        name = "boss" if job.children else "held" if held else "big" if job.size > 16_000 else "bench"
        await client.start(name, job.prompt, id=job.id)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        ended = await client.get(job.id).result()
        return str(ended.output)

    async def approve(self, client: Client, job: Job) -> None:
        """Approve the held tool call."""
        run = client.get(job.id)
        await run.resolve_approval(f"call-{job.hold_at or 1}-1", allow=True)

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """Yield the text as a watcher sees it: by `Run.events`, as the docs say."""
        run = client.get(job.id)
        while not await _exists(run):
            await asyncio.sleep(0.02)
        async for event in run.events():
            if isinstance(event, TextDelta):
                yield event.text


async def _exists(run: Run) -> bool:
    try:
        await run.describe()
    except RunNotFound:
        return False
    return True
