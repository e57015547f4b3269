"""Degradation: fallbacks, open circuits, parking, redriving, last words."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from perdure import Agent, Fallback, InvalidRequest, Limits, Policy, Rule, ToolFallback, ToolRetry, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.errors import DefinitionError, FatalToolError, RetryableToolError
from perdure.hooks import Hook, HookedCall, Replace
from perdure.model import ModelConfig, ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.wire.events import StatusChanged
from perdure.workers.observe.parked import Gauges, ParkedRuns, count_by_cause
from tests.conftest import HANGS, Gate, Serve, until, until_status

AN_OUTAGE: dict[str, Any] = {"circuit_threshold": 1, "circuit_wait": timedelta(seconds=3)}
"""Settings with which a failing model parks its runs in some seconds."""
A_LONG_OUTAGE: dict[str, Any] = {"circuit_threshold": 1, "circuit_wait": timedelta(hours=1)}
"""Settings with which nobody asks a model that failed once, for as long as a test lasts."""


class Provider:
    """A model that can be put out of order, and counts what it is asked."""

    def __init__(self, *lines: Line) -> None:
        self.lines = lines or (says("hi"),)
        self.broken: Line | None = None
        self.asked = 0

    def __call__(self, request: ModelRequest) -> Line:
        self.asked += 1
        return self.broken or self.lines[min(request.step, len(self.lines)) - 1]


def models(**providers: Provider) -> dict[str, ScriptedModel]:
    return {name: ScriptedModel(provider) for name, provider in providers.items()}


async def finished(client: Client, *ids: str) -> list[str]:
    return [str((await client.get(run_id).result()).output) for run_id in ids]


# -- models


async def test_fallback_answers_one_call(serve: Serve) -> None:
    """The first model is used again for the next call, and the step names the error. Each has its instructions."""
    first, second = Provider(calls("nothing"), says("back")), Provider(calls("nothing"))
    first.broken = fails("authentication", "expired")
    simpler = Fallback(model="second:y", on={"authentication"}, sticky=False, instructions="Be brief.")
    agent = Agent(name="a", model="first:x", instructions="Think it over.", fallbacks=[simpler])
    read: list[str] = []

    def answer(request: ModelRequest) -> Line:
        read.append(request.instructions)
        return first(request)

    def mend(request: ModelRequest) -> Line:
        read.append(request.instructions)
        first.broken = None
        return second(request)

    chain = {"first": ScriptedModel(answer), "second": ScriptedModel(mend)}
    async with serve(agent, models=chain) as client:
        run = await client.start("a", "go")
        assert (await run.result()).output == "back"
        steps = await run.steps()
    assert [step.model for step in steps] == ["second:y", "first:x"]
    assert steps[0].errors[0] == "first:x: authentication: expired"
    assert [text.partition("\n")[0] for text in read] == ["Think it over.", "Be brief.", "Think it over."]


async def test_open_circuit_falls_back(serve: Serve) -> None:
    first, second = Provider(), Provider()
    first.broken = fails("overloaded")
    agent = Agent(name="a", model="first:x", fallbacks=["second:y"])
    async with serve(agent, models=models(first=first, second=second), circuit_threshold=2) as client:
        for _ in range(6):
            assert (await client.run("a", "go")).output == "hi"
        run = await client.start("a", "and now?")
        await run.result()
        [step] = await run.steps()
    assert first.asked == 2, "the circuit opened, and was left alone"
    assert step.errors[0].startswith("first:x: circuit_open: first:x is blocked for another ")


async def test_outage_parks_and_runs_resume(serve: Serve) -> None:
    provider = Provider()
    provider.broken = fails("overloaded", "too many")
    fast: dict[str, Any] = {**AN_OUTAGE, "parked_retry": timedelta(milliseconds=100)}
    agent = Agent(name="a", model="scripted:x")
    async with serve(agent, models=models(scripted=provider), **fast) as client:
        runs = [await client.start("a", f"go {n}") for n in range(3)]
        for run in runs:
            await until_status(client, run.id, "parked")

        async def told() -> bool:
            status = await runs[0].status()
            if status.failure is None:
                return False  # it tries again at this moment
            assert status.failure.kind in ("overloaded", "circuit_open")
            assert status.failure.resumes_at is not None
            return "tries again at" in status.doing

        await until(told)
        provider.broken = None
        assert [await run.result() for run in runs]
        assert [(await run.result()).steps for run in runs] == [1, 1, 1]


async def test_retry_after_costs_no_attempt(
    serve: Serve,
) -> None:
    """All calls wait for the provider's delay."""
    asked: list[float] = []
    clock = asyncio.get_running_loop().time

    def script(request: ModelRequest) -> Line:
        asked.append(clock())
        slow = fails("rate_limited", retry_after=timedelta(seconds=1))
        return slow if len(asked) == 1 else says("hi")

    agent = Agent(name="a", model="scripted:x")
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        first = await client.start("a", "go")
        await until(lambda: asyncio.sleep(0, bool(asked)))
        others = [await client.start("a", f"go {n}") for n in range(4)]
        assert await finished(client, first.id, *(run.id for run in others)) == ["hi"] * 5
    assert min(asked[1:]) - asked[0] >= 1, "nobody came before the time"
    assert len(asked) == 6, "and nobody was refused again"


async def test_failed_run_gives_its_fallback_message(serve: Serve) -> None:
    provider = Provider()
    provider.broken = fails("payment", "no money")
    agent = Agent(
        name="a", model="scripted:x", on_failure="answer", fallback_message="Please call us: 555-0100."
    )
    async with serve(agent, models=models(scripted=provider)) as client:
        result = await client.run("a", "go")
        assert (await client.get((await client.start("a", "x")).id).result()).error is not None
    assert (result.output, result.stop_reason) == ("Please call us: 555-0100.", "error")
    assert result.error is not None
    assert result.error.kind == "payment"


async def test_early_end_says_what_is_missing(serve: Serve) -> None:
    @tool
    async def look(where: str) -> str:
        """Look."""
        return "seen"

    script: list[Line | list[Line]] = [
        says("Half of it is done.") + calls("look", where="here"),
        [calls("look", where="there"), calls("look", where="beyond")],
        calls("look", where="further"),
    ]
    agent = Agent(name="a", model="scripted:x", tools=[look], limits=Limits(tool_calls=1, steps=2))
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        result = await client.run("a", "go")
    assert result.output == "Half of it is done."
    assert [line.partition(":")[0] for line in result.missing] == [
        'look(where="there")',
        'look(where="beyond")',
    ]


# -- tools


@tool(name="spare")
async def _spare(city: str) -> str:
    """Weather, from elsewhere."""
    return f"{city}: rain"


def _weather(failures: list[BaseException], **settings: Any) -> Any:
    @tool(name="weather", **settings)
    async def weather(city: str) -> str:
        """Weather."""
        if failures:
            raise failures.pop(0)
        return f"{city}: sun"

    return weather


async def _results(client: Client, prompt: str = "go") -> list[str]:
    run = await client.start("a", prompt)
    await run.result()
    return [part.text for message in await run.transcript() for part in message.tool_results]


async def test_failed_tool_gets_a_stand_in(serve: Serve) -> None:
    weather = _weather([ValueError("sensor")], fallback=ToolFallback(tool="spare"))
    agent = Agent(name="a", model="scripted:x", tools=[weather, _spare])
    script = [calls("weather", city="Ulm"), says("done")]
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        [said] = await _results(client)
    assert said == "(Answered by 'spare', because 'weather' failed: ValueError: sensor)\nUlm: rain"


@pytest.mark.parametrize(
    ("errors", "stood_in"),
    [
        ([ConnectionRefusedError("nobody there")] * 2, True),
        ([ConnectionRefusedError("nobody there"), FatalToolError("no")], True),
        ([ConnectionRefusedError("nobody there"), ValueError("what was that?")], False),
        ([TimeoutError("silence"), ConnectionRefusedError("nobody there")], False),
        ([ConnectionResetError("cut"), FatalToolError("no")], False),
        ([ConnectionRefusedError("nobody there"), httpx2.ReadTimeout("silence")], False),
    ],
)
async def test_write_falls_back_only_without_effect(
    serve: Serve, errors: list[Exception], stood_in: bool
) -> None:
    """The fallback is not called if any attempt of a write may have had its effect."""
    met, paid = iter(errors), 0
    retry = ToolRetry(attempts=2, initial_interval=timedelta(milliseconds=10))

    @tool(effect="write", retry=retry, fallback=ToolFallback(tool="pay_otherwise"))
    async def pay() -> str:
        """Pay."""
        raise next(met)

    @tool(effect="write")
    async def pay_otherwise() -> str:
        """Pay in another way."""
        nonlocal paid
        paid += 1
        return "paid"

    agent = Agent(name="a", model="scripted:x", tools=[pay, pay_otherwise])
    script = ScriptedModel([calls("pay"), says("done")])
    async with serve(agent, models={"scripted": script}) as client:
        run = await client.start("a", "go")
        await run.result()
        [result] = (await run.transcript())[2].tool_results
    assert (paid, result.is_error) == ((1, False) if stood_in else (0, True))
    assert ("may or may not have taken effect" in result.text) is not stood_in


async def test_slow_store_does_not_repeat_tool(settings: Settings) -> None:
    from perdure.workers.running import serving

    effects = 0

    class Slow(FileBlobs):
        """Takes longer than the tool may be silent."""

        async def put(self, data: bytes) -> str:
            began = asyncio.get_running_loop().time()
            await until(lambda: asyncio.sleep(0, asyncio.get_running_loop().time() > began + 3))
            return await super().put(data)

    @tool(effect="write", heartbeat=timedelta(seconds=2))
    async def book() -> str:
        """Book it, and tell at length."""
        nonlocal effects
        effects += 1
        return "x" * 20_000

    agent = Agent(name="a", model="scripted:x", tools=[book])
    given = {"scripted": ScriptedModel([calls("book"), says("done")])}
    store = Slow(settings.home / "blobs")
    async with serving(
        [agent], models=given, address=settings.address, settings=settings, blobs=store
    ) as served:
        run = await Client(served[0], task_queue=served[1]).start("a", "go")
        assert (await run.result()).output == "done"
    assert effects == 1


async def test_last_result_is_per_user(serve: Serve) -> None:
    """A failed tool is replaced by its last result, never by that of another user."""
    failures: list[BaseException] = []
    weather = _weather(failures, fallback=ToolFallback(remembered=timedelta(hours=1)))
    agent = Agent(name="a", model="scripted:x", tools=[weather])
    script = [calls("weather", city="Ulm"), says("done")]
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        assert await _results(client) == ["Ulm: sun"]
        failures.append(ValueError("sensor"))
        again = await client.start("a", "again")
        await again.result()
        [[made], []] = [step.tool_calls for step in await again.steps()]
        assert (made.tool, made.stand_in, made.is_error) == ("weather", "remembered", False)
        [said] = [part.text for message in await again.transcript() for part in message.tool_results]
        assert said.startswith("('weather' failed: ValueError: sensor\nThis is what the same call gave ")
        assert said.endswith("Ulm: sun")
        failures.append(ValueError("sensor"))
        stranger = await client.start("a", "go", user="somebody else")
        await stranger.result()
        [message] = [m for m in await stranger.transcript() if m.tool_results]
        assert message.tool_results[0].is_error


async def test_tool_circuit_opens(serve: Serve) -> None:
    failures: list[BaseException] = [RetryableToolError("down") for _ in range(50)]
    weather = _weather(failures, circuit=True)
    agent = Agent(name="a", model="scripted:x", tools=[weather])
    script = [calls("weather", city="Ulm"), says("done")]
    async with serve(agent, models={"scripted": ScriptedModel(script)}, circuit_threshold=2) as client:
        said = ""
        for n in range(4):
            [said] = await _results(client, f"go {n}")
    assert len(failures) == 48
    assert "tool:weather is blocked for another" in said


async def test_policy_covers_stand_ins(serve: Serve) -> None:
    weather = _weather([ValueError("sensor")], fallback=ToolFallback(tool="spare"))
    policy = Policy(rules=(Rule(tool="spare", verdict="deny"), Rule(tool="*", verdict="allow")))
    agent = Agent(name="a", model="scripted:x", tools=[weather, _spare], policy=policy)
    script = [calls("weather", city="Ulm"), says("done")]
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        assert await _results(client) == ["ValueError: sensor"]


class _Translates(Hook):
    """Translates the names of cities for the stand-in."""

    async def before_tool(self, call: HookedCall) -> Any:
        return Replace(value={"city": f"x-{call.arguments['city']}"}) if call.tool == "far" else None


async def test_policy_judges_what_a_stand_in_gets(serve: Serve) -> None:
    """A hook that changes a stand-in's arguments is asked before the policy judges them."""
    asked: list[str] = []

    @tool(name="far", resource="city")
    async def far(city: str) -> str:
        """Weather, from afar."""
        asked.append(city)
        return f"{city}: fog"

    weather = _weather([ValueError("sensor"), ValueError("sensor")], fallback=ToolFallback(tool="far"))
    policy = Policy(rules=(Rule(resource="x-Ulm", verdict="deny"), Rule(tool="*", verdict="allow")))
    agent = Agent(name="a", model="scripted:x", tools=[weather, far], policy=policy, hooks=[_Translates()])
    for city, words in [("Ulm", "the policy does not allow 'far' here"), ("Bonn", "x-Bonn: fog")]:
        script = [calls("weather", city=city), says("done")]
        async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
            [said] = await _results(client)
        assert words in said
    assert asked == ["x-Bonn"]


# -- parked runs


async def _parked(client: Client, run: Run) -> None:
    await until_status(client, run.id, "parked")


async def test_redrive_parked_by_cause(serve: Serve) -> None:
    """With another model."""
    broken, other = Provider(), Provider(says("from the other"))
    broken.broken = fails("authentication", "no key")
    agent = Agent(name="a", model="broken:x", instructions="Be brief.")
    async with serve(agent, models=models(broken=broken, other=other)) as client:
        runs = [await client.start("a", f"go {n}", user="redriven") for n in range(3)]
        for run in runs:
            await _parked(client, run)

        async def found(**which: Any) -> set[str]:
            return {info.id async for info in client.parked_runs(user="redriven", **which)}

        async def all_are_listed() -> bool:
            return await found(cause="authentication") == {run.id for run in runs}

        await until(all_are_listed)
        assert await found(cause="payment") == set()
        assert await found(task_queue=client.task_queue) == {run.id for run in runs}
        assert await found(task_queue="another-teams") == set()
        assert await found(older_than=timedelta(hours=1)) == set()
        with pytest.raises(InvalidRequest, match="no such provider"):
            await runs[0].redrive(model="nobody:x")
        with pytest.raises(InvalidRequest, match="the price of broken:x is not known"):
            await runs[0].redrive(limits=Limits(cost_usd=1))
        with pytest.raises(InvalidRequest, match="price"):
            await runs[0].redrive(model="other:z", limits=Limits(cost_usd=1))
        assert (await runs[0].status()).status == "parked", "a slip changes nothing"
        for run in runs:
            await run.redrive(model="other:z")
        assert await finished(client, *(run.id for run in runs)) == ["from the other"] * 3
        assert (await runs[0].status()).model == "other:z"
        assert (await runs[0].spec()).spec.name == "a"

        async def none_is_listed() -> bool:
            return not await found()

        await until(none_is_listed)


async def test_park_for_a_person_is_visible(
    serve: Serve,
) -> None:
    """In lists and to watchers."""
    provider = Provider()
    provider.broken = fails("overloaded", "too many")
    fast: dict[str, Any] = {**AN_OUTAGE, "parked_retry": timedelta(milliseconds=500)}
    async with serve(Agent(name="a", model="scripted:x"), models=models(scripted=provider), **fast) as client:
        run = await client.start("a", "go", user="at-last")
        await until_status(client, run.id, "parked")

        async def told() -> None:
            async for event in run.events():
                if isinstance(event, StatusChanged) and event.failure and event.failure.resumes_at is None:
                    assert event.failure.kind == "authentication"
                    return

        watching = asyncio.create_task(told())
        provider.broken = fails("authentication", "the key was taken back")

        async def is_listed() -> bool:
            found = client.parked_runs(cause="authentication", user="at-last")
            return [info.id async for info in found] == [run.id]

        await until(is_listed)
        async with asyncio.timeout(HANGS):
            await watching
        provider.broken = None
        await run.redrive()
        assert (await run.result()).output == "hi"


async def test_redrive_blocks_the_retry_timer(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.starter.client import calls
    from perdure.workers.running import serving

    # The redrive waits here for as long as the run is parked, which is a matter of chance.
    monkeypatch.setattr(calls, "ANSWER_WITHIN", timedelta(seconds=HANGS))
    gate, slow = Gate(), False

    class SlowAtTimes(FileBlobs):
        """Lets a redrive wait while the agent's new spec is kept."""

        async def put(self, data: bytes) -> str:
            if slow:
                await gate.wait()
            return await super().put(data)

    broken, other = Provider(), Provider(says("from the other"))
    broken.broken = fails("overloaded", "too many")
    more = {**AN_OUTAGE, "parked_retry": timedelta(seconds=1), "blob_threshold_bytes": 1024}
    agent = Agent(name="a", model="broken:x", instructions="Be brief. " * 200)
    async with serving(
        [agent],
        models=models(broken=broken, other=other),
        address=settings.address,
        settings=settings.model_copy(update=more),
        blobs=SlowAtTimes(settings.home / "blobs"),
    ) as served:
        client = Client(served[0], task_queue=served[1])
        run = await client.start("a", "go")
        await until_status(client, run.id, "parked")
        slow = True
        changing = asyncio.create_task(run.redrive(model="other:z"))
        await gate.reached.wait()
        failure = (await run.status()).failure
        assert failure is not None
        due = failure.resumes_at
        assert due is not None
        await until(lambda: asyncio.sleep(0, datetime.now(UTC) > due + timedelta(seconds=1)))
        assert (await run.status()).status == "parked"
        gate.opened.set()
        await changing
        assert (await run.result()).output == "from the other"


async def test_redrive_keeps_common_settings_only(serve: Serve) -> None:
    asked: list[ModelConfig] = []

    class Strict(ScriptedModel):
        """Takes no thinking, as some do not."""

        def check(self, config: ModelConfig) -> None:
            if config.thinking is not None or config.model == "wrong":
                raise DefinitionError(f"{config.name} is not taken")

    def script(request: ModelRequest) -> Line:
        asked.append(request.config)
        return says("hi")

    broken = Provider()
    broken.broken = fails("authentication", "no key")
    options: dict[str, Any] = {"base_url": "http://the-old-one", "extra_headers": {"x-key": "secret"}}
    first = ModelConfig(name="broken:x", thinking="adaptive", max_tokens=99, options=options)
    given = {"broken": ScriptedModel(broken), "strict": Strict(script)}
    async with serve(Agent(name="a", model=first), models=given) as client:
        run = await client.start("a", "go")
        await _parked(client, run)
        with pytest.raises(InvalidRequest, match="strict:wrong is not taken"):
            await run.redrive(model="strict:wrong")
        assert (await run.status()).status == "parked", "nothing was changed"
        await run.redrive(model="strict:x")
        assert (await run.result()).output == "hi"
    assert asked == [ModelConfig(name="strict:x", max_tokens=99)]


async def test_redrive_takes_newest_version(serve: Serve) -> None:
    heard: list[str] = []

    def script(request: ModelRequest) -> Line:
        heard.append(request.instructions)
        return fails("payment") if request.instructions == "old" else says("hi")

    model = {"scripted": ScriptedModel(script)}
    old = Agent(name="a", model="scripted:x", instructions="old")
    new = Agent(name="a", model="scripted:x", instructions="new", limits=Limits(steps=9))
    async with serve(old, models=model) as client:
        run = await client.start("a", "go")
        await _parked(client, run)
    async with serve(new, models=model) as client:
        await run.resume()
        await until(lambda: asyncio.sleep(0, len(heard) == 2))
        await _parked(client, run)
        for clock in (Limits(timeout=timedelta(hours=1)), Limits(timeout_excludes_people=True)):
            with pytest.raises(InvalidRequest, match="clock cannot be set anew"):
                await run.redrive(limits=clock)
        await run.redrive(newest=True, limits=Limits(steps=3))
        assert (await run.result()).output == "hi"
        with pytest.raises(InvalidRequest, match=r"not parked|ending|over"):
            await client.get((await _held(client)).id).redrive()
    assert heard == ["old", "old", "new"], "a resume keeps what it was started with"


async def _held(client: Client) -> Run:
    run = await client.start("a", "wait")
    await run.pause()
    return run


@asynccontextmanager
async def _in_a_long_outage(serve: Serve, *, many: int = 1) -> AsyncGenerator[tuple[Provider, list[Run]]]:
    """A provider that fails, and runs that are parked for it, its circuit being open."""
    provider = Provider()
    provider.broken = fails("overloaded")
    agent = Agent(name="a", model="scripted:x")
    async with serve(agent, models=models(scripted=provider), **A_LONG_OUTAGE) as client:
        runs = [await client.start("a", "go") for _ in range(many)]
        for run in runs:
            await _parked(client, run)
        yield provider, runs


async def test_parked_run_can_be_stopped(serve: Serve) -> None:
    async with _in_a_long_outage(serve) as (_, [run]):
        await run.stop()
        assert (await run.result()).stop_reason == "stopped"


async def test_resume_forces_an_early_probe(serve: Serve) -> None:
    async with _in_a_long_outage(serve, many=2) as (provider, runs):
        asked, provider.broken = provider.asked, None
        await runs[0].resume()
        assert (await runs[0].result()).output == "hi"
        await runs[1].redrive()
        assert (await runs[1].result()).output == "hi"
    assert (asked, provider.asked) == (1, 3)


async def test_resume_forces_only_once(serve: Serve) -> None:
    async with _in_a_long_outage(serve) as (provider, [run]):
        before = (await run.status()).failure
        await run.resume()

        async def parked_anew() -> bool:
            now = (await run.status()).failure
            return now is not None and before is not None and now.since != before.since

        await until(parked_anew)
        failure = (await run.status()).failure
        await run.stop()
    assert failure is not None
    assert failure.kind == "circuit_open"
    assert provider.asked == 2, "once more, whatever its attempts"


async def test_parked_runs_are_counted_by_cause(serve: Serve) -> None:
    """With the age of the oldest."""
    provider = Provider()
    provider.broken = fails("not_found", "no such model")
    agent = Agent(name="counted", model="scripted:x")
    async with serve(agent, models=models(scripted=provider)) as client:
        first = await client.start("counted", "go")
        await _parked(client, first)

        async def count() -> int:
            return (await count_by_cause(client.temporal)).get("not_found", ParkedRuns()).runs

        before = 0

        async def counted() -> bool:
            nonlocal before
            before = await count()
            return before >= 1

        await until(counted)
        since = (await count_by_cause(client.temporal))["not_found"].since
        second = await client.start("counted", "go on")
        await _parked(client, second)

        async def one_more() -> bool:
            return await count() == before + 1

        await until(one_more)
        assert (await count_by_cause(client.temporal))["not_found"].since == since, (
            "the oldest stays the oldest"
        )
        gauges = Gauges()
        await gauges.update(client.temporal)
        assert gauges.by_cause["not_found"].age(datetime.now(UTC)) > 0
        provider.broken = None
        await first.resume()
        await second.redrive()
        await asyncio.gather(first.result(), second.result())

        async def gone() -> bool:
            await gauges.update(client.temporal)
            return gauges.by_cause["not_found"].runs == before - 1

        await until(gone)
