"""The Strands plugin as the harness sees it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from strands.models import Model
from strands.types.content import Messages
from strands.types.streaming import StreamEvent
from temporalio.client import Client
from temporalio.contrib.workflow_streams import WorkflowStreamClient
from temporalio.service import RPCError, RPCStatusCode
from temporalio.strands_agents import StrandsPlugin
from temporalio.worker import Worker

from proofs.benchmarks.kit import TOOL, Job, Where, ask, step_of
from proofs.benchmarks.kit.real import KEY, REGION, real

from . import workflow as agent


class Fake(Model):
    """Model without latency."""

    def update_config(self, **model_config: Any) -> None:
        """Do nothing: the fake has no settings."""

    def get_config(self) -> dict[str, Any]:
        """Do nothing: the fake has no settings."""
        return {}

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: the jobs need no structured output."""
        raise NotImplementedError

    async def stream(self, messages: Messages, *args: Any, **kwargs: Any) -> AsyncIterator[StreamEvent]:
        """Ask for the tool calls of the next step, or answer."""
        job = Job.of(messages[0]["content"][0]["text"])
        done = step_of(_newest_result(messages))
        answer = ask(job, done)
        yield {"messageStart": {"role": "assistant"}}
        for n, call in enumerate(answer.calls, 1):
            yield {
                "contentBlockStart": {"start": {"toolUse": {"toolUseId": f"c{done + 1}-{n}", "name": TOOL}}}
            }
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(call)}}}}
            yield {"contentBlockStop": {}}
        if not answer.calls:
            yield {"contentBlockStart": {"start": {}}}
            async for word in _words(job, answer.text):
                yield {"contentBlockDelta": {"delta": {"text": word}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use" if answer.calls else "end_turn"}}
        yield {
            "metadata": {
                "usage": {"inputTokens": 1000, "outputTokens": 20, "totalTokens": 1020},
                "metrics": {"latencyMs": 0},
            }
        }


def _newest_result(messages: Messages) -> str | None:
    for message in reversed(messages):
        for block in message["content"]:
            if "toolResult" in block:
                return "".join(part.get("text", "") for part in block["toolResult"]["content"])
    return None


async def _words(job: Job, text: str) -> AsyncIterator[str]:
    if not job.tokens:
        yield text
        return
    began = time.perf_counter()
    for n in range(job.tokens):
        yield f"{' ' if n else ''}{time.time():.4f}"
        if job.rate:
            await asyncio.sleep(max(0.0, began + (n + 1) / job.rate - time.perf_counter()))


def _model() -> Model:
    """Return the fake, or in the suite `wire` the framework's own model of the API."""
    found = real()
    match found and found.api:
        case None:
            return Fake()
        case "anthropic":
            from strands.models.anthropic import AnthropicModel

            client = {"api_key": KEY, "base_url": found.address}
            return AnthropicModel(client_args=client, model_id=found.model, max_tokens=8192)
        case "openai":
            from strands.models.openai import OpenAIModel

            client = {"api_key": KEY, "base_url": f"{found.address}/v1"}
            return OpenAIModel(client_args=client, model_id=found.model)
        case _:
            from strands.models import BedrockModel

            return BedrockModel(model_id=found.model, endpoint_url=found.address, region_name=REGION)


class Strands:
    """Strands Agents with Temporal's plugin."""

    workflow = "StrandsWorkflow"
    model = "invoke_model"
    tool = TOOL
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """Run a worker with its default settings."""
        client = await Client.connect(where.address, plugins=[StrandsPlugin(models={"fake": _model})])
        async with Worker(
            client,
            task_queue=where.queue,
            workflows=[agent.StrandsWorkflow],
            activities=[agent.lookup],
            max_cached_workflows=where.cache,
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        self.queue = where.queue
        return await Client.connect(where.address, plugins=[StrandsPlugin(models={"fake": _model})])

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        await client.start_workflow(agent.StrandsWorkflow.run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        return str(await client.get_workflow_handle(job.id).result())

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """Yield the text as a subscriber of the workflow's stream sees it."""
        await _exists(client, job.id)
        stream = WorkflowStreamClient.create(client, job.id)
        async for item in stream.subscribe(
            [agent.TOPIC], result_type=StreamEvent, poll_cooldown=timedelta(milliseconds=50)
        ):
            event = item.data
            if "contentBlockDelta" in event and "text" in event["contentBlockDelta"]["delta"]:
                yield event["contentBlockDelta"]["delta"]["text"]
            elif "messageStop" in event and event["messageStop"]["stopReason"] == "end_turn":
                return


async def _exists(client: Client, run: str) -> None:
    while True:
        try:
            await client.get_workflow_handle(run).describe()
            return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await asyncio.sleep(0.02)
