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

from . import workflow as agent


class Fake(Model):
    """A model without latency."""

    def update_config(self, **model_config: Any) -> None:
        """There is none."""

    def get_config(self) -> dict[str, Any]:
        """There is none."""
        return {}

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        """Not asked for."""
        raise NotImplementedError

    async def stream(self, messages: Messages, *args: Any, **kwargs: Any) -> AsyncIterator[StreamEvent]:
        """Ask for the next step, or answer."""
        job = Job.of(messages[0]["content"][0]["text"])
        done = step_of(_newest_result(messages))
        said = ask(job, done)
        yield {"messageStart": {"role": "assistant"}}
        for n, call in enumerate(said.calls, 1):
            yield {
                "contentBlockStart": {"start": {"toolUse": {"toolUseId": f"c{done + 1}-{n}", "name": TOOL}}}
            }
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(call)}}}}
            yield {"contentBlockStop": {}}
        if not said.calls:
            yield {"contentBlockStart": {"start": {}}}
            async for word in _words(job, said.text):
                yield {"contentBlockDelta": {"delta": {"text": word}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use" if said.calls else "end_turn"}}
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


class Strands:
    """Strands Agents with Temporal's plugin."""

    workflow = "StrandsWorkflow"
    model = "invoke_model"
    tool = TOOL
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """A worker at its defaults."""
        client = await Client.connect(where.address, plugins=[StrandsPlugin(models={"fake": Fake})])
        async with Worker(
            client,
            task_queue=where.queue,
            workflows=[agent.StrandsWorkflow],
            activities=[agent.lookup],
            max_cached_workflows=where.cache,
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """A client."""
        self.queue = where.queue
        return await Client.connect(where.address, plugins=[StrandsPlugin(models={"fake": Fake})])

    async def run(self, client: Client, job: Job) -> str:
        """Start, and wait."""
        await self.started(client, job)
        return await self.finish(client, job)

    async def started(self, client: Client, job: Job) -> None:
        """Start only."""
        await client.start_workflow(agent.StrandsWorkflow.run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the end."""
        return str(await client.get_workflow_handle(job.id).result())

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """The text, as one subscriber of the workflow's stream sees it."""
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
