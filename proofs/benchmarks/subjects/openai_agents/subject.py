"""The OpenAI Agents plugin as the harness sees it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from agents import Model, ModelProvider, ModelResponse, OpenAIProvider, Usage
from agents.items import TResponseOutputItem, TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from temporalio.client import Client
from temporalio.contrib.workflow_streams import WorkflowStreamClient
from temporalio.openai_agents import ModelActivityParameters, OpenAIAgentsPlugin
from temporalio.openai_agents.testing import ResponseBuilders, TestModelProvider
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from proofs.benchmarks.kit import TOOL, Answer, Job, Where, ask, step_of
from proofs.benchmarks.kit.real import KEY, real

from . import workflow as agent

EVENT: Any = TResponseStreamEvent


class Fake(Model):
    """Model without latency."""

    async def get_response(self, *args: Any, **request: Any) -> ModelResponse:
        """Ask for the tool calls of the next step, or answer."""
        job, done = _parse_request(request["input"])
        usage = Usage(requests=1, input_tokens=1000, output_tokens=20, total_tokens=1020)
        return ModelResponse(output=_output(ask(job, done), done), usage=usage, response_id=f"r{done}")

    async def stream_response(self, *args: Any, **request: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Ask for the tool calls of the next step, or stream the answer word by word."""
        job, done = _parse_request(request["input"])
        answer = ask(job, done)
        number = 0
        if not answer.calls:
            text = ""
            async for word in _words(job):
                text += word
                yield ResponseTextDeltaEvent(
                    content_index=0,
                    delta=word,
                    item_id="",
                    logprobs=[],
                    output_index=0,
                    sequence_number=number,
                    type="response.output_text.delta",
                )
                number += 1
            answer = Answer(text=text)
        response = Response(
            id=f"r{done}",
            created_at=time.time(),
            model="fake",
            object="response",
            output=_output(answer, done),
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
            usage=ResponseUsage(
                input_tokens=1000,
                input_tokens_details=InputTokensDetails(cache_write_tokens=0, cached_tokens=0),
                output_tokens=20,
                output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
                total_tokens=1020,
            ),
        )
        yield ResponseCompletedEvent(response=response, sequence_number=number, type="response.completed")


def _parse_request(shown: str | list[Any]) -> tuple[Job, int]:
    """Return the job, and the number of its finished steps."""
    items = [{"content": shown}] if isinstance(shown, str) else shown
    outputs = (item["output"] for item in reversed(items) if item.get("type") == "function_call_output")
    return Job.of(items[0]["content"]), step_of(next(outputs, None))


def _output(answer: Answer, done: int) -> list[TResponseOutputItem]:
    if not answer.calls:
        return [ResponseBuilders.response_output_message(answer.text)]
    return [
        ResponseFunctionToolCall(
            arguments=json.dumps(call),
            call_id=f"c{done + 1}-{n}",
            id=f"f{done + 1}-{n}",
            name=TOOL,
            status="completed",
            type="function_call",
        )
        for n, call in enumerate(answer.calls, 1)
    ]


async def _words(job: Job) -> AsyncIterator[str]:
    began = time.perf_counter()
    for n in range(job.tokens):
        yield f"{' ' if n else ''}{time.time():.4f}"
        if job.rate:
            await asyncio.sleep(max(0.0, began + (n + 1) / job.rate - time.perf_counter()))


def _provider() -> ModelProvider:
    """Return the fake, or in the suite `wire` the SDK's own provider, for chat completions."""
    found = real()
    if found is None:
        return TestModelProvider(Fake())
    return OpenAIProvider(api_key=KEY, base_url=f"{found.address}/v1", use_responses=False)


class OpenAIAgents:
    """OpenAI Agents with Temporal's plugin."""

    workflow = "OpenAIAgent"
    model = "invoke_model_activity"
    tool = TOOL
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """Run a worker with its default settings."""
        async with Worker(
            await self.connect(where),
            task_queue=where.queue,
            workflows=[agent.OpenAIAgent],
            activities=[agent.lookup],
            max_cached_workflows=where.cache,
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        self.queue = where.queue
        plugin = OpenAIAgentsPlugin(
            model_params=ModelActivityParameters(
                start_to_close_timeout=timedelta(seconds=30), streaming_topic=agent.TOPIC
            ),
            model_provider=_provider(),
        )
        return await Client.connect(where.address, plugins=[plugin])

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        await client.start_workflow(agent.OpenAIAgent.run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        return str(await client.get_workflow_handle(job.id).result())

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """Yield the text as a subscriber of the workflow's stream sees it."""
        await _exists(client, job.id)
        stream = WorkflowStreamClient.create(client, job.id)
        async for item in stream.subscribe([agent.TOPIC], result_type=EVENT):
            if isinstance(item.data, ResponseTextDeltaEvent):
                yield item.data.delta


async def _exists(client: Client, run: str) -> None:
    while True:
        try:
            await client.get_workflow_handle(run).describe()
            return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await asyncio.sleep(0.02)
