"""When the model fails: retries, the fallback chain, parking, and typed errors."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.exceptions import ActivityError, TimeoutError, TimeoutType

from perdure import Agent, Client, Image, RunFailed, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.prices import Price
from perdure.settings import Settings
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.wire.effects import Progress
from perdure.wire.results import RunResult
from perdure.workflows.pending_activities import model_failure
from tests.conftest import HANGS, Serve, until, until_status


class Counted:
    """A script that counts its attempts."""

    def __init__(self, *lines: Line) -> None:
        self.lines = lines
        self.attempts = 0

    def __call__(self, request: ModelRequest) -> Line:
        self.attempts += 1
        return self.lines[min(self.attempts, len(self.lines)) - 1]


async def test_transient_failure_waits_provider_delay(serve: Serve) -> None:
    """A transient failure is retried after the provider's own delay."""
    model = Counted(fails("rate_limited", retry_after=timedelta(milliseconds=30)), says("hi"))
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(model)}
    ) as client:
        run = await client.start("a", "go")
        assert (await run.result()).output == "hi"
        [step] = await run.steps()
    assert (model.attempts, step.attempts) == (2, 2)


async def test_wrong_key_parks_run(serve: Serve) -> None:
    """A wrong key is tried once and parks the run until a person repairs it."""
    model = Counted(fails("authentication", "the key sk-abcdefghijklmnopqrstuvwx is wrong"), says("hi"))
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(model)}
    ) as client:
        run = await client.start("a", "go")
        await until_status(client, run.id, "parked")
        status = await run.status()
        assert model.attempts == 1
        assert status.failure is not None
        assert (status.failure.kind, status.failure.step) == ("authentication", 1)
        assert status.failure.message == "the key [redacted] is wrong"

        async def found() -> bool:
            return run.id in [info.id async for info in client.list(status="parked")]

        await until(found)
        await run.resume()
        result = await run.result()
    assert (result.output, result.steps) == ("hi", 1), "it went on from exactly that step"


async def test_on_failure_fail_gives_typed_error(serve: Serve) -> None:
    agent = Agent(name="a", model="scripted:x", on_failure="fail")
    async with serve(agent, models={"scripted": ScriptedModel(Counted(fails("payment")))}) as client:
        run = await client.start("a", "go")
        with pytest.raises(RunFailed) as failed:
            await run.result()
        assert failed.value.kind == "payment"
        assert isinstance(failed.value.result, RunResult)
        assert (await run.status()).status == "failed"

        async def listed() -> bool:
            return [i.status async for i in client.list(query=f'WorkflowId="{run.id}"')] == ["failed"]

        await until(listed)


@pytest.mark.parametrize("kind", ["bad_request", "bug"])
async def test_permanent_failure_is_never_retried(serve: Serve, kind: Any) -> None:
    """A failure that nobody can repair ends the run at once, without a retry."""
    model = Counted(fails(kind))
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(model)}
    ) as client:
        with pytest.raises(RunFailed) as failed:
            await client.run("a", "go")
    assert (failed.value.kind, model.attempts) == (kind, 1)


async def test_broken_script_fails_run(serve: Serve) -> None:
    def script(request: ModelRequest) -> Line:
        raise LookupError("my own mistake")

    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(script)}
    ) as client:
        with pytest.raises(RunFailed, match="LookupError: my own mistake"):
            await client.run("a", "go")


async def test_next_model_of_chain_answers(serve: Serve) -> None:
    """The next model of the chain answers when a model has given up."""
    first, second = (
        Counted(fails("not_found", "no such model")),
        Counted(calls("nothing"), says("from the second")),
    )
    agent = Agent(name="a", model="first:x", fallbacks=["second:y"])
    models = {"first": ScriptedModel(first), "second": ScriptedModel(second)}
    async with serve(agent, models=models) as client:
        run = await client.start("a", "go")
        result = await run.result()
        steps = await run.steps()
        assert (await run.status()).model == "second:y"
    assert result.output == "from the second"
    assert first.attempts == 1, "the run stays with the model that works"
    assert [step.model for step in steps] == ["second:y", "second:y"]
    assert steps[0].errors[0] == "first:x: not_found: no such model"


async def test_long_wait_falls_back(serve: Serve) -> None:
    """A wait of hours falls back to the next model instead."""
    first = Counted(fails("rate_limited", retry_after=timedelta(hours=2)))
    agent = Agent(name="a", model="first:x", fallbacks=["second:y"])
    models = {"first": ScriptedModel(first), "second": ScriptedModel([says("ok")])}
    async with serve(agent, models=models) as client:
        async with asyncio.timeout(HANGS):
            assert (await client.run("a", "go")).output == "ok"
    assert first.attempts == 1


async def test_cut_call_cost_counts_once(serve: Serve) -> None:
    cut = Line(text="x" * 400, error=fails("stream_cut").error)
    model = Counted(cut, says("whole", usage=Usage(input_tokens=10, output_tokens=5)))
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(model)}
    ) as client:
        result = await client.run("a", "go")
    assert model.attempts == 2
    # Four bytes a token in the script; our estimate of text without words is at most a token a byte.
    assert 5 + 100 <= result.usage.output_tokens <= 5 + 500, "the cut answer was paid for"
    assert result.usage.estimated


async def test_overflowing_context_is_halved(serve: Serve) -> None:
    """An overflowing context is halved, and the run goes on."""

    @tool
    async def work() -> str:
        """Work."""
        return "result"

    def script(request: ModelRequest) -> Line:
        if len(request.messages) > 7:
            return fails("context_overflow")
        return says("done") if request.step > 8 else calls("work")

    agent = Agent(name="a", model="scripted:x", tools=[work])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "the task")
        result = await run.result()
        transcript = await run.transcript()
    assert result.output == "done"
    assert len(transcript) == 18, "the transcript itself is whole"


async def test_incompressible_context_ends_run(serve: Serve) -> None:
    """A context that cannot shrink ends the run with its reason, and with the provider's words."""
    model = Counted(fails("context_overflow", "9000 tokens are 1000 too many"))
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(model)}
    ) as client:
        result = await client.run("a", "go")
    assert (result.stop_reason, model.attempts) == ("context_overflow", 1)
    assert result.error is not None
    assert result.error.message == "9000 tokens are 1000 too many"
    assert result.output == "The conversation does not fit the model: 9000 tokens are 1000 too many"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"agent": "a", "prompt": 7}, "prompt: .*must be text or a list of parts, not int"),
        ({"agent": "a", "prompt": "  "}, "is empty"),
        ({"agent": "a"}, "prompt: Field required"),
        ({"agent": "a", "prompt": "x", "limit": 3}, "limit: Extra inputs"),
        ({"agent": "a", "prompt": "x", "limits": {"steps": 0}}, "limits.steps"),
        ("just text", "run request"),
        (None, "run request"),
    ],
)
async def test_wrong_json_request_is_explained(serve: Serve, request_: Any, why: str) -> None:
    """A wrong request in plain JSON fails the run and says what is wrong."""
    async with serve(Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel([])}) as client:
        await client.temporal.start_workflow(
            "AgentWorkflow", request_, id="wrong", task_queue=client.task_queue
        )
        with pytest.raises(RunFailed, match=why) as failed:
            await client.get("wrong").result()
    assert failed.value.kind == "InvalidRequest"


async def test_unreadable_picture_parks_run(settings: Settings) -> None:
    """A picture that cannot be read parks the run until it can."""
    from perdure.workers.running import serving

    away = True

    class AwayForAWhile(FileBlobs):
        """Gives nothing back until somebody has mended it."""

        async def get(self, name: str) -> bytes:
            if away:
                raise PermissionError("stale file handle")
            return await super().get(name)

    @tool
    async def look() -> Image:
        """Look."""
        return Image(data="iVBORw0K" * 4000)

    script = ScriptedModel([calls("look"), says("seen")])
    store = AwayForAWhile(settings.home / "blobs", cache_bytes=0)
    async with serving(
        [Agent(name="a", model="scripted:x", tools=[look])],
        models={"scripted": script},
        address=settings.address,
        settings=settings,
        blobs=store,
    ) as served:
        client = Client(served[0], task_queue=served[1])
        run = await client.start("a", "go")
        await until_status(client, run.id, "parked")
        failure = (await run.status()).failure
        assert failure is not None
        assert failure.kind == "storage"
        away = False
        await run.resume()
        assert (await run.result()).output == "seen"


def test_dead_call_cost_comes_from_heartbeat() -> None:
    """The cost of a call that died is read from its last heartbeat."""
    spent = Usage(input_tokens=1000, output_tokens=50, estimated=True)
    heard = Progress(call="step-1", attempt=6, seq=3, spent=spent).model_dump(mode="json")
    price = Price(input=1_000_000, output=2_000_000, cache_read=0, cache_write=0)
    failure = model_failure(_died(heard), price)
    assert (failure.kind, failure.wasted) == ("timeout", spent)
    assert failure.wasted_microusd == price.cost_microusd(spent)
    assert model_failure(_died(), price).wasted == Usage()
    assert model_failure(_died("no progress"), price).wasted == Usage()


def _died(*heard: Any) -> ActivityError:
    error = ActivityError(
        "activity error",
        scheduled_event_id=1,
        started_event_id=2,
        identity="",
        activity_type="call_model",
        activity_id="1",
        retry_state=None,
    )
    error.__cause__ = TimeoutError("heartbeat", type=TimeoutType.HEARTBEAT, last_heartbeat_details=heard)
    return error
