"""History: a step costs the same at any length, and a run outlives any history."""

import collections
import os
from typing import Any

from perdure import Agent, Limits, SlidingWindow, Summary, tool
from perdure.messages import Message
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.workers.dev.server import DevServer
from tests.conftest import Gate, Serve, until_status

RESULT = "x" * 2048

LONG = int(os.environ.get("LONG_STEPS", "400"))
"""Steps of the longest run: it continues as new by itself after some 340. `make stress` sets 3,000."""


@tool
async def work(n: int) -> str:
    """Work."""
    return RESULT


def working(steps: int) -> ScriptedModel:
    def script(request: ModelRequest) -> Line:
        return says("done") if request.step > steps else calls("work", n=request.step)

    return ScriptedModel(script)


def agent(**changed: Any) -> Agent:
    return Agent(name="a", model="scripted:x", tools=[work], limits=Limits(steps=None), **changed)


async def history_sizes(client: Client, run_id: str) -> list[int]:
    """Bytes of each history of the run: one, and one more for each time it continued as new."""
    described = await client.get(run_id).describe()
    chain = described.raw_description.workflow_extended_info
    assert chain is not None
    sizes: list[int] = []
    run_id_of: str | None = described.run_id
    while run_id_of:
        handle = client.temporal.get_workflow_handle(run_id, run_id=run_id_of)
        one = await handle.describe()
        sizes.append(one.raw_description.workflow_execution_info.history_size_bytes)
        first = (await handle.fetch_history()).events[0]
        run_id_of = first.workflow_execution_started_event_attributes.continued_execution_run_id or None
    return sizes


async def bytes_of_histories(serve: Serve, steps: int) -> list[int]:
    """Run that many steps, check the end and the transcript, and return the sizes of the histories."""
    async with serve(agent(), models={"scripted": working(steps)}) as client:
        run = await client.start("a", "go", id=f"steps-{steps}", stream=False)
        result = await run.result()
        transcript = await run.transcript()
        sizes = await history_sizes(client, run.id)
    assert (result.stop_reason, result.steps) == ("end_turn", steps + 1)
    assert len(transcript) == 2 * steps + 2
    assert all(message.text == RESULT for message in transcript if message.role == "tool")
    assert [m.meta.step for m in transcript if m.meta] == list(range(1, steps + 2))
    return sizes


async def test_history_grows_linearly(serve: Serve) -> None:
    """A step costs the same history early and late in a run that continues as new, and each history is small."""
    short, long = await bytes_of_histories(serve, 50), await bytes_of_histories(serve, LONG)
    assert len(long) > 1, "it continued as new"
    assert max(long) < 6_000_000, long
    early, late = sum(short) / 50, sum(long) / LONG
    assert abs(late - early) / early < 0.10, (early, late)
    assert max(early, late) < 6_500, (early, late)


async def test_single_worker_queries_nothing(serve: Serve) -> None:
    """Transcript and spec come from the worker's own memory."""
    from perdure.workers.plugin import PerdurePlugin

    async with serve(agent(), models={"scripted": working(30)}) as client:
        [plugin] = [p for p in client.temporal.config()["plugins"] if isinstance(p, PerdurePlugin)]
        await client.run("a", "go")
        assert plugin.transcripts.queries == 0


async def test_messages_arrive_without_cache(serve: Serve) -> None:
    """Without any cache, every message still arrives."""
    seen: list[int] = []

    def script(request: ModelRequest) -> Line:
        seen.append(len(request.messages))
        return says("done") if request.step > 10 else calls("work", n=request.step)

    async with serve(
        agent(),
        models={"scripted": ScriptedModel(script)},
        worker={"max_cached_workflows": 0},
        transcript_cache_bytes=0,
    ) as client:
        await client.run("a", "go")
    assert seen == [1 + 2 * step for step in range(11)]


async def test_continue_as_new_carries_everything(impatient: DevServer, serve: Serve, settings: Any) -> None:
    from tests.serving import running

    gate = Gate()
    read: dict[int, str] = {}

    @tool(approval=True)
    async def pay(n: int) -> str:
        """Pay."""
        return "paid"

    async def script(request: ModelRequest) -> Any:
        read[request.step] = request.messages[-1].text
        if request.step == 30:
            await gate.wait()
        if request.step == 40:
            return calls("pay", n=1)
        return says("done") if request.step > 50 else calls("work", n=request.step)

    careful = Agent(
        name="a",
        model="scripted:x",
        tools=[work, pay],
        limits=Limits(steps=60, tool_calls=1000, cost_usd=100),
    )
    mine = settings.model_copy(update={"address": impatient.address})
    async with running(
        [careful], models={"scripted": ScriptedModel(script)}, address=impatient.address, settings=mine
    ) as client:
        run = await client.start("a", "the task", user="ann", context={"k": 1})
        await gate.reached.wait()
        await run.send("steer")
        gate.opened.set()
        await until_status(client, run.id, "waiting_approval")
        before = await run.status()
        await run.pause()
        await run.resolve_approval("call-40-1", allow=True)
        await until_status(client, run.id, "paused")
        await run.resume()
        result = await run.result()
        transcript = await run.transcript()
        sizes = await history_sizes(client, run.id)
        steps = await run.steps()
    assert len(sizes) > 5, "it did continue as new"
    assert (result.output, result.steps, result.tool_calls) == ("done", 51, 50)
    assert (before.step, before.tool_calls) == (40, 40)
    assert len(transcript) == 1 + 51 + 50 + 1
    assert transcript[0].text == "the task"
    assert "steer" in [message.text for message in transcript]
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in steps)
    assert result.cost_microusd == sum(step.cost_microusd or 0 for step in steps)
    ids = [call.id for message in transcript for call in message.tool_calls]
    assert [n for n, count in collections.Counter(ids).items() if count > 1] == []


async def test_window_keeps_task_and_exchanges(serve: Serve) -> None:
    """The window has the task and the newest messages, and keeps calls with their results."""
    shown: list[list[str]] = []

    def script(request: ModelRequest) -> Line:
        shown.append([message.role for message in request.messages])
        assert request.messages[0].text == "the task"
        for i, message in enumerate(request.messages):
            if message.role == "tool":
                asked = [call.id for call in request.messages[i - 1].tool_calls]
                assert asked == [result.call_id for result in message.tool_results]
        return says("done") if request.step > 40 else calls("work", n=request.step)

    windowed = agent(context=SlidingWindow(messages=10))
    async with serve(windowed, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "the task")
        await run.result()
        transcript = await run.transcript()
    assert max(len(roles) for roles in shown) <= 10
    assert len(transcript) == 82


async def test_summary_takes_the_place_of_old_messages(serve: Serve) -> None:
    """A model summarizes what leaves the window; the next calls see the summary behind the task."""
    shown: list[tuple[Message, ...]] = []
    asked: list[str] = []

    def script(request: ModelRequest) -> Line:
        if not request.tools:
            asked.append(request.messages[0].text)
            return says(f"summary {len(asked)}")
        shown.append(request.messages)
        return says("done") if request.step > 20 else calls("work", n=request.step)

    summarizing = agent(context=Summary(messages=10, tokens=None, instructions="Keep the numbers."))
    async with serve(summarizing, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "the task")
        result = await run.result()
        transcript = await run.transcript()
    assert (result.stop_reason, result.steps, len(transcript)) == ("end_turn", 21, 42)
    assert len(asked) > 1
    assert f"<earlier_summary>\nsummary {len(asked) - 1}\n" in asked[-1]
    assert shown[-1][0].text == "the task"
    assert shown[-1][1].text.endswith(f"summary {len(asked)}")
    assert not any("summary" in message.text for message in transcript)
    used = sum(message.meta.usage.total_tokens for message in transcript if message.meta)
    assert result.usage.total_tokens > used, "summaries are counted too"


async def test_lost_summary_does_not_stop_the_run(serve: Serve) -> None:
    """When the summary fails, the window slides without it."""

    def script(request: ModelRequest) -> Line:
        if not request.tools:
            return fails("authentication", "no key")
        return says("done") if request.step > 12 else calls("work", n=request.step)

    summarizing = agent(context=Summary(messages=10, tokens=None))
    async with serve(summarizing, models={"scripted": ScriptedModel(script)}) as client:
        result = await client.run("a", "the task")
    assert (result.stop_reason, result.steps) == ("end_turn", 13)
