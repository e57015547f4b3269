"""Odd input, from people, models, tools and stores: an answer or one typed error, never a hang."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client as TemporalClient
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from perdure import Agent, InvalidRequest, RemoteTool, RunConflict, RunEnded, ToolContext, ToolRetry, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.blobs import BlobStore
from perdure.messages import Text, ToolCall
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.requests import RunRequest
from perdure.workflows.engine.events import EndRequested
from perdure.workflows.engine.fold import fold, initial
from tests.conftest import HANGS, Gate, Serve, until, until_status

HALF = "half \ud83d"
"""Half of a character: Python can hold it, UTF-8 and JSON cannot."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@tool
async def work(value: Any = None) -> str:
    """Work."""
    return "worked"


AGENT = Agent(name="a", model="scripted:x", tools=[work])


async def test_a_prompt_of_parts_is_read(serve: Serve) -> None:
    async with serve(AGENT, models={"scripted": ScriptedModel([says("ok")])}) as client:
        run = await client.start("a", [Text(text="hello")])
        await run.result()
        assert (await run.transcript())[0].text == "hello"


@pytest.mark.parametrize("what", ["prompt", "id", "context"])
async def test_lone_surrogate_is_rejected_on_entry(serve: Serve, what: str) -> None:
    """Half a character is rejected where it enters."""
    given: dict[str, Any] = {"prompt": "go", "id": None, "context": None}
    given[what] = {"k": HALF} if what == "context" else HALF
    async with serve(AGENT, models={"scripted": ScriptedModel([])}) as client:
        with pytest.raises(InvalidRequest, match="cannot be written"):
            await client.start("a", given["prompt"], id=given["id"], context=given["context"])


async def test_lone_surrogates_of_model_are_repaired(serve: Serve) -> None:
    """Half characters of a model are repaired, not retried."""
    asked: list[int] = []

    def script(request: ModelRequest) -> Line:
        asked.append(request.step)
        return says(HALF) + calls("work", value=HALF) if request.step == 1 else says(HALF)

    async with serve(AGENT, models={"scripted": ScriptedModel(script)}) as client, asyncio.timeout(HANGS):
        result = await client.run("a", "go")
    assert asked == [1, 2]
    assert result.output.startswith("half ")


@pytest.mark.parametrize("value", [nested(400), 10**5000], ids=["deep", "long"])
async def test_unreadable_arguments_go_to_model(serve: Serve, value: Any) -> None:
    """Arguments that cannot be read back go back to the model."""
    call = ToolCall.model_construct(id="", name="work", arguments={"value": value}, problem=None)
    script = [Line(calls=(call,)), says("sorry")]
    async with serve(AGENT, models={"scripted": ScriptedModel(script)}) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go")
        assert (await run.result()).output == "sorry"
        assert (await run.transcript())[2].tool_results[0].is_error


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [ValueError(HALF), Unspeakable(), asyncio.CancelledError(), BaseExceptionGroup("g", [KeyError("x")])],
    ids=["half", "unspeakable", "cancelled", "group"],
)
async def test_unserializable_error_repeats_no_effect(serve: Serve, error: BaseException) -> None:
    """An error that cannot be serialized does not repeat the effect."""
    effects = 0

    @tool(effect="write")
    async def odd(context: ToolContext) -> str:
        """Do something, then fail oddly."""
        nonlocal effects
        effects += 1
        context.progress(HALF)
        raise error

    agent = Agent(name="a", model="scripted:x", tools=[odd])
    async with serve(agent, models={"scripted": ScriptedModel([calls("odd"), says("ok")])}) as client:
        run = await client.start("a", "go")
        async with asyncio.timeout(HANGS):
            assert (await run.result()).output == "ok"
        assert (await run.transcript())[2].tool_results[0].is_error
    assert effects == 1


async def test_temporal_error_loses_its_secrets(serve: Serve) -> None:
    """An error of Temporal's own keeps its meaning and loses its secrets."""
    tries = 0

    @tool
    async def raises() -> str:
        """Raise."""
        nonlocal tries
        tries += 1
        raise ApplicationError("password=hunter2hunter2", non_retryable=True)

    agent = Agent(name="a", model="scripted:x", tools=[raises])
    async with serve(agent, models={"scripted": ScriptedModel([calls("raises"), says("ok")])}) as client:
        run = await client.start("a", "go")
        await run.result()
        assert (await run.transcript())[2].tool_results[0].text == "password=[redacted]"
        history = (await run.handle.fetch_history()).to_json()
    assert tries == 1
    assert "hunter2" not in history


class Full:
    """A blob store that takes nothing."""

    async def put(self, data: bytes) -> str:
        raise OSError("No space left on device")

    async def get(self, name: str) -> bytes:
        raise KeyError(name)


async def test_full_disk_repeats_no_effect(settings: Settings) -> None:
    """A full disk repeats no effect and no paid call."""
    from perdure.starter.client.connect import Client
    from perdure.workers.running import serving

    effects, asked = 0, 0

    @tool(effect="write")
    async def big() -> str:
        """Give much."""
        nonlocal effects
        effects += 1
        return "x" * 100_000

    def script(request: ModelRequest) -> Line:
        nonlocal asked
        asked += 1
        return calls("big") if request.step == 1 else says("y" * 100_000)

    agent = Agent(name="a", model="scripted:x", tools=[big])
    store: BlobStore = Full()
    models = {"scripted": ScriptedModel(script, chunk=10_000)}
    async with serving(
        [agent], models=models, address=settings.address, settings=settings, blobs=store
    ) as served:
        client = Client(served[0], task_queue=served[1])
        run = await client.start("a", "go")
        await until_status(client, run.id, "parked")
        failure = (await run.status()).failure
        [result] = (await run.transcript())[2].tool_results
        await run.stop()
        await run.result()
    assert effects == 1
    assert "could not be kept" in result.text
    assert failure is not None
    assert failure.kind == "storage"
    assert asked == 2, "the reply that could not be kept was paid for once"


async def test_new_run_waits_for_disk(
    settings: Settings,
) -> None:
    """A run that begins while the disk is full waits for it."""
    from perdure.starter.client.connect import Client
    from perdure.workers.running import serving

    full = True

    class FullForAWhile(FileBlobs):
        """Takes nothing until somebody has made room."""

        async def put(self, data: bytes) -> str:
            if full:
                raise OSError("No space left on device")
            return await super().put(data)

    agent = Agent(name="a", model="scripted:x", instructions="Be brief. " * 200)
    small = settings.model_copy(update={"blob_threshold_bytes": 1024})
    models = {"scripted": ScriptedModel([says("done")])}
    async with serving(
        [agent],
        models=models,
        address=settings.address,
        settings=small,
        blobs=FullForAWhile(settings.home / "blobs"),
    ) as served:
        client = Client(served[0], task_queue=served[1])
        run = await client.start("a", "go")

        async def says_why() -> bool:
            return "No space left" in (await run.status()).doing

        await until(says_why)
        refused = await client.start("a", "go")
        await until_status(client, refused.id, "thinking")
        await refused.cancel()
        assert (await refused.result()).stop_reason == "cancelled"
        full = False
        assert (await run.result()).output == "done"


async def test_cut_call_may_have_had_effect(settings: Settings) -> None:
    """A call cut by its worker's end may have had its effect."""
    from perdure.starter.client.connect import Client
    from perdure.workers.running import serving

    reached = asyncio.Event()

    @tool(effect="write", retry=ToolRetry(attempts=1))
    async def book() -> str:
        """Book it."""
        reached.set()
        await asyncio.Event().wait()
        return "booked"

    agent = Agent(name="a", model="scripted:x", tools=[book])
    models = {"scripted": ScriptedModel([calls("book"), says("done")])}
    hasty = settings.model_copy(update={"graceful_shutdown_timeout": timedelta()})

    def worker() -> Any:
        return serving([agent], models=models, address=settings.address, settings=hasty)

    async with worker() as served:
        run = await Client(served[0], task_queue=served[1]).start("a", "go")
        await reached.wait()
    async with worker() as served:
        run = Client(served[0], task_queue=served[1]).get(run.id)
        assert (await run.result()).output == "done"
        [result] = (await run.transcript())[2].tool_results
    assert (result.is_error, result.error_kind) == (True, "tool_timeout")
    assert "may or may not have taken effect" in result.text


async def test_lost_result_says_tool_did_work(
    settings: Settings,
) -> None:
    """A model learns that a tool whose result could not be stored has done its work."""
    from perdure.starter.client.connect import Client
    from perdure.workers.running import serving

    class Full:
        """Takes results of tools no more; what is smaller than its threshold does not come here."""

        async def put(self, data: bytes) -> str:
            raise OSError("No space left on device")

        async def get(self, name: str) -> bytes:
            raise KeyError(name)

    effects = 0

    @tool(effect="write")
    async def book() -> str:
        """Book it."""
        nonlocal effects
        effects += 1
        return "x" * 12_000  # shown whole, but too big for history

    def script(request: ModelRequest) -> Line:
        return calls("book") if request.step == 1 else says("done")

    agent = Agent(name="a", model="scripted:x", tools=[book])
    small = settings.model_copy(update={"blob_threshold_bytes": 8_192})
    models = {"scripted": ScriptedModel(script)}
    async with serving(
        [agent], models=models, address=settings.address, settings=small, blobs=Full()
    ) as served:
        run = await Client(served[0], task_queue=served[1]).start("a", "go")
        await run.result()
        [result] = (await run.transcript())[2].tool_results
    assert effects == 1
    assert result.is_error
    assert "has done its work" in result.text, "else the model would ask for it again, under another key"


async def test_bad_remote_answer_is_error_result(serve: Serve, settings: Settings) -> None:
    """A bad answer of a remote tool is an error result."""

    @activity.defn(name="bytes")
    async def gives_bytes(arguments: Any, context: Any) -> bytes:
        return b"\xff\x00"

    @activity.defn(name="deep")
    async def gives_depth(arguments: Any, context: Any) -> Any:
        activity.heartbeat(b"\xff")
        return nested(150)

    queue = f"{settings.task_queue}-remote"
    schema: dict[str, Any] = {"type": "object"}
    tools = [
        RemoteTool(name=n, description=n, input_schema=schema, task_queue=queue) for n in ("bytes", "deep")
    ]

    def script(request: ModelRequest) -> Any:
        return [calls("bytes"), calls("deep")] if request.step == 1 else says("ok")

    agent = Agent(name="a", model="scripted:x", tools=tools)
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        elsewhere = await TemporalClient.connect(settings.address)
        async with Worker(elsewhere, task_queue=queue, activities=[gives_bytes, gives_depth]):
            async with asyncio.timeout(HANGS):
                assert (await client.run("a", "go")).output == "ok"


async def test_message_is_acknowledged_only_if_readable(serve: Serve) -> None:
    """Sent together with a stop, it is refused, or in the transcript or the queue."""
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        await gate.wait()
        return says("done")

    async with serve(AGENT, models={"scripted": ScriptedModel(script)}) as client:
        for _ in range(5):
            run = await client.start("a", "go")
            await until_status(client, run.id, "thinking")
            await run.stop()
            with pytest.raises((InvalidRequest, RunEnded)):
                await run.send("too late")
            assert (await run.result()).stop_reason == "stopped"
        gate.opened.set()


def test_cancel_overrides_stop() -> None:
    """Cancel overrides stop, and nothing overrides cancel."""
    begun = initial(RunRequest(agent="a", prompt="go"), AGENT.spec(), datetime.now(UTC))
    stopped = fold(begun, EndRequested(reason="stopped"))
    cancelled = fold(stopped, EndRequested(reason="cancelled"))
    assert (stopped.ending, cancelled.ending) == ("stopped", "cancelled")
    assert fold(cancelled, EndRequested(reason="deadline")).ending == "cancelled"


@workflow.defn
class Foreign:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


async def test_foreign_workflow_id_is_no_run(serve: Serve, settings: Settings) -> None:
    """The id of a workflow of another application is not taken for a run."""
    temporal = await TemporalClient.connect(settings.address)
    handle = await temporal.start_workflow(Foreign.run, id=settings.task_queue, task_queue="nobody")
    async with serve(AGENT, models={"scripted": ScriptedModel([says("ok")])}) as client:
        with pytest.raises(RunConflict, match="'Foreign'"):
            await client.start("a", "go", id=settings.task_queue)
    await handle.terminate()


async def test_quotes_in_filter_are_literal(serve: Serve) -> None:
    """Quotes in a filter are part of the name."""
    async with serve(AGENT, models={"scripted": ScriptedModel([says("ok")])}) as client:
        await client.run("a", "go", user="ann")
        for user in ('an"n', "b\\", '" OR AgentUser = "ann'):
            assert [info async for info in client.list(user=user)] == []
