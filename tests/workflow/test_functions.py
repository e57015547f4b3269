"""User functions on a worker: generators as tools, threads that hang, hooks that block."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

from temporalio.worker import Worker

from perdure import Agent, ModelConfig, ToolRetry, tool
from perdure.hooks import Hook, HookedCall
from perdure.messages import ToolResult
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import ScriptedModel, calls, says
from perdure.tools import AnyTool
from perdure.workers.connection import connect_temporal
from perdure.workers.observe.doctor import examine
from perdure.workers.observe.health import check
from perdure.workers.plugin import PerdurePlugin
from perdure.workers.worker import serve_health
from tests.conftest import Serve

SHORT = timedelta(milliseconds=200)


def _call_each(request: ModelRequest) -> Any:
    """Call each of the agent's tools in the first step, and answer in the second."""
    return [calls(each.name) for each in request.tools] if request.step == 1 else says("Done.")


MODELS = {"scripted": ScriptedModel(_call_each)}


def _agent(name: str, tools: Sequence[AnyTool], hooks: Sequence[Hook] = ()) -> Agent:
    return Agent(name=name, model=ModelConfig(name="scripted:x"), tools=tools, hooks=hooks)


async def _results(client: Client, agent: str) -> list[str]:
    """Return what the tools of a run told its model."""
    run = await client.start(agent, "Go.")
    await run.result()
    parts = [part for message in await run.transcript() for part in message.parts]
    return [part.text for part in parts if isinstance(part, ToolResult)]


async def test_pieces_of_generator_are_its_result(serve: Serve) -> None:
    """A tool that yields runs to its end; its pieces, or its error, are the result of the call."""

    @tool
    def plain() -> Iterator[str]:
        """Export."""
        yield "one"
        yield "two"

    @tool
    async def asynchronous() -> AsyncIterator[str]:
        """Export."""
        yield "one"
        yield "two"

    @tool
    def broken() -> Iterator[str]:
        """Export."""
        yield "one"
        raise LookupError("no table")

    async with serve(_agent("clerk", [plain, asynchronous, broken]), models=MODELS) as client:
        pieces = '["one","two"]'
        assert await _results(client, "clerk") == [pieces, pieces, "LookupError: no table"]


async def test_hung_threads_starve_nobody(serve: Serve) -> None:
    """More threads hang than the worker has activity slots; a write that comes later runs, once."""
    hung, booked = threading.Event(), list[str]()

    @tool(timeout=SHORT, retry=ToolRetry(attempts=3, initial_interval=timedelta(milliseconds=10)))
    def hang() -> None:
        """Wait for a host that does not answer."""
        hung.wait()

    @tool(effect="write", retry=ToolRetry(attempts=1))
    def book() -> str:
        """Book."""
        booked.append("table 4")
        return "booked"

    agents = [_agent("hangs", [hang]), _agent("clerk", [book])]
    async with serve(*agents, models=MODELS, max_concurrent_activities=2) as client:
        assert await _results(client, "hangs") == [
            "TimeoutError: no result within 0:00:00.200000 (after 3 attempts)"
        ]
        assert await _results(client, "clerk") == ["booked"]
    hung.set()
    assert booked == ["table 4"]


async def test_refused_write_had_no_effect(serve: Serve, settings: Settings) -> None:
    """A worker whose threads hang refuses a write before it is called, says so to the model, and is not ready."""
    hung, called = threading.Event(), list[str]()

    @tool(timeout=SHORT, retry=ToolRetry(attempts=1))
    def hang() -> None:
        """Wait for a host that does not answer."""
        hung.wait()

    @tool(effect="write", retry=ToolRetry(attempts=1))
    def book() -> str:
        """Book."""
        called.append("book")
        return "booked"

    mine = settings.model_copy(update={"max_lost_threads": 1, "health_address": "127.0.0.1:0"})
    plugin = PerdurePlugin([_agent("hangs", [hang]), _agent("clerk", [book])], models=MODELS, settings=mine)
    temporal = await connect_temporal(mine, [plugin])
    async with (
        Worker(temporal, task_queue=mine.task_queue) as worker,
        serve_health(plugin, worker, temporal, asyncio.Event()) as address,
    ):
        client = Client(temporal, task_queue=mine.task_queue)
        await _results(client, "hangs")
        problem = "1 threads hang in functions that never returned: restart this worker"
        assert (await _results(client, "clerk"), called) == ([f"not called: {problem}"], [])
        assert await asyncio.to_thread(check, f"http://{address}/ready") == f"503: {problem}"
        found = examine(mine.model_copy(update={"health_address": address}))
        threads = [finding async for finding in found if finding.name == "threads"]
        assert [(finding.verdict, finding.text) for finding in threads] == [("warn", "tool:hang: 1 lost")]
    hung.set()


async def test_blocking_hook_holds_up_no_run(serve: Serve) -> None:
    """A plain hook that waits leaves the worker free: the run that it waits for runs meanwhile."""
    passed = threading.Event()

    class Waits(Hook):
        def before_tool(self, call: HookedCall) -> None:  # type: ignore[override]
            assert passed.wait(60), "the worker stood still"

    @tool
    async def let_pass() -> str:
        """Let the other run pass."""
        passed.set()
        return "passed"

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    async with serve(
        _agent("guarded", [look], [Waits()]), _agent("free", [let_pass]), models=MODELS
    ) as client:
        waiting = asyncio.create_task(_results(client, "guarded"))
        assert await _results(client, "free") == ["passed"]
        assert await waiting == ["seen"]
