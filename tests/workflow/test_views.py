"""What a model sees: the request in hand, what nobody has read, and results that fit together."""

import asyncio
import re
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from temporalio.api.history.v1 import HistoryEvent

from perdure import Agent, Edge, Graph, GraphLimits, Limits, SlidingWindow, Summary, tool
from perdure.messages import Image, Text, estimated_tokens
from perdure.model import ModelRequest
from perdure.settings import load_settings
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.tools import AnyTool
from perdure.workers.dev.server import DevServer
from tests.conftest import HANGS, Gate, Serve
from tests.pictures import PNG
from tests.serving import running


@tool
async def count_shelf(shelf: int) -> str:
    """Count the boxes on a shelf."""
    return f"shelf {shelf}: 3 boxes"


def shown(request: ModelRequest) -> list[str]:
    return [message.text for message in request.messages]


async def test_turns_request_stays_visible(serve: Serve) -> None:
    """In each turn of a session with a short window, the model sees the turn's own request at every step."""
    blind: list[int] = []
    firsts: list[str] = []

    def script(request: ModelRequest) -> Line:
        turn = (request.step - 1) // 10 + 1
        if not any(f"QUESTION {turn}" in text for text in shown(request)):
            blind.append(request.step)
        firsts.append(request.messages[0].role)
        return says(f"answer {turn}") if request.step % 10 == 0 else calls("count_shelf", shelf=request.step)

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf], context=SlidingWindow(messages=6))
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        session = await client.session("depot", agent="depot")
        for turn in (1, 2, 3):
            reply = await session.say(f"QUESTION {turn}")
            assert reply.text == f"answer {turn}"
    assert blind == []
    assert set(firsts) == {"user"}


async def test_visits_request_stays_visible(serve: Serve) -> None:
    """An agent that a graph visits again sees the task of this visit, though its earlier visits fill the window."""
    visits: list[list[bool]] = []

    def writer(request: ModelRequest) -> Line:
        if request.step == 1:
            visits.append([])
        words = "FIRST TASK" if len(visits) == 1 else "FROM THE CRITIC"
        visits[-1].append(any(words in text for text in shown(request)))
        return says("a draft") if request.step == 8 else calls("count_shelf", shelf=request.step)

    made = Graph(
        name="desk",
        nodes={
            "writer": Agent(
                name="writer", model="w:x", tools=[count_shelf], context=SlidingWindow(messages=6)
            ),
            "critic": Agent(name="critic", model="c:x"),
        },
        edges=[Edge("writer", "critic"), Edge("critic", "writer", lambda state: state.visits["writer"] < 2)],
        entry="writer",
        limits=GraphLimits(max_node_executions=4),
    )
    critic = ScriptedModel(lambda _: says("FROM THE CRITIC: count once more"))
    async with serve(made, models={"w": ScriptedModel(writer), "c": critic}) as client:
        await client.run("desk", "FIRST TASK")
    assert visits == [[True] * 8, [True] * 8]


async def test_unread_messages_outlive_an_overflow(serve: Serve) -> None:
    """Messages that people send in mid-run are read, though the call that was to read them first overflows."""
    gate = Gate()
    seen: list[list[str]] = []

    async def script(request: ModelRequest) -> Line:
        if request.step <= 4:
            return calls("count_shelf", shelf=request.step)
        if request.step == 5 and not gate.opened.is_set():
            await gate.wait()
            return calls("count_shelf", shelf=5)
        seen.append([text for text in shown(request) if text.startswith("also")])
        return fails("context_overflow") if len(seen) == 1 else says("read")

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf])
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("depot", "count")
        await gate.reached.wait()
        for number in range(5):
            await run.send(f"also {number}")
        gate.opened.set()
        result = await run.result()
    assert result.output == "read"
    assert seen == [[f"also {number}" for number in range(5)]] * 2


@tool
async def look_up(town: int) -> str:
    """Look up a town."""
    return facts(town)


def facts(town: int) -> str:
    return f"town {town}: " + "fact after fact. " * 700 + f"the end of {town}"


async def test_results_of_a_step_fit_and_read_on(serve: Serve) -> None:
    """Twenty long results of one step fit the model, of tools and of agents, and it can read the rest of each."""
    most: list[int] = []
    counts: list[int] = []

    def script(request: ModelRequest) -> Line | list[Line]:
        most.append(sum(estimated_tokens(message) for message in request.messages))
        results = [result.text for message in request.messages for result in message.tool_results]
        if request.step == 1:
            by_agent = any("input" in tool.input_schema["properties"] for tool in request.tools)
            return [
                calls(request.tools[0].name, **({"input": str(town)} if by_agent else {"town": town}))
                for town in range(20)
            ]
        if "the end of 19" in results[-1]:
            return says("read")
        long = [text for text in results if text.startswith("town")]
        counts.append(len(long))
        first = next(text for text in long if "town 19" in text)
        name = NAMED.search(first)
        offset = OFFSET.findall(first if request.step == 2 else results[-1])
        assert name is not None
        return calls("read_result", result=name[1], offset=int(offset[-1]))

    scout = Agent(name="scout", model="s:x", description="Finds out about a town.")
    scouts = ScriptedModel(lambda request: says(facts(int(request.messages[0].text))))
    by_kind: dict[str, AnyTool] = {
        "tools": look_up,
        "agents": scout.as_tool(),
    }
    window = SlidingWindow(tokens=16_000)
    asking = [
        Agent(name=name, model="e:x", tools=[used], context=window, limits=Limits(steps=60))
        for name, used in by_kind.items()
    ]
    async with serve(*asking, models={"s": scouts, "e": ScriptedModel(script)}) as client:
        outcomes = await asyncio.gather(
            *(client.run(agent.name, "Write about twenty towns.") for agent in asking)
        )
    assert [outcome.output for outcome in outcomes] == ["read"] * 2
    assert max(most) < 16_000
    assert set(counts) == {20}


NAMED = re.compile(r'read_result\(result="([^"]+)"')
OFFSET = re.compile(r"offset[ =](\d+)")


async def test_reply_bound_is_made_smaller(serve: Serve) -> None:
    """A reply bound that does not fit the model is made smaller; the conversation stays whole, the words are kept."""
    asked: list[tuple[int, int]] = []
    words = "max_tokens is too large: {}. This model supports at most 1000 completion tokens"

    def script(request: ModelRequest) -> Line:
        asked.append((request.max_tokens, len(request.messages)))
        if request.max_tokens > 1000:
            return fails("bad_request", words.format(request.max_tokens))
        return says("done") if request.step == 4 else calls("count_shelf", shelf=request.step)

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf])
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("depot", "count")
        result = await run.result()
        replies = [message.meta for message in await run.transcript() if message.meta]
    assert result.output == "done"
    assert [count for bound, count in asked if bound == 1000] == [1, 3, 5, 7]
    assert all("at most 1000 completion tokens" in meta.errors[0] for meta in replies)


async def test_large_reply_bound_is_no_fault_of_an_image(serve: Serve) -> None:
    """A model that refuses the reply's bound goes on seeing the image that came with it."""
    seen: list[tuple[int, bool]] = []

    def script(request: ModelRequest) -> Line:
        has_image = any(part.kind == "image" for message in request.messages for part in message.parts)
        seen.append((request.max_tokens, has_image))
        if request.max_tokens > 1000:
            return fails(
                "bad_request", "max_tokens is too large: this model supports at most 1000 completion tokens"
            )
        return says("done") if request.step == 2 else calls("count_shelf", shelf=1)

    depot = Agent(name="depot", model="scripted:x", tools=[count_shelf])
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        result = await client.run("depot", [Text(text="count"), Image(data=PNG)])
    assert result.output == "done"
    assert all(has_image for _, has_image in seen)
    assert [bound for bound, _ in seen].count(1000) == 2


class Boxes(BaseModel):
    count: int


async def test_overflow_is_never_silent(serve: Serve) -> None:
    """A run whose conversation does not fit says something: its newest words, its own for this case, or the reason."""
    refused = fails("context_overflow", "4096 tokens are the most")

    def script(request: ModelRequest) -> Line:
        return says("First I count.") + calls("count_shelf", shelf=1) if request.step == 1 else refused

    told: dict[str, Any] = {"tools": [count_shelf]}
    agents = [
        Agent(name="words", model="w:x", **told),
        Agent(name="message", model="o:x", fallback_message="Ask in the shop.", **told),
        Agent(name="reason", model="o:x", **told),
        Agent(name="typed", model="o:x", output_type=Boxes, **told),
    ]
    models = {"o": ScriptedModel(lambda _: refused), "w": ScriptedModel(script)}
    async with serve(*agents, models=models) as client:
        outcomes = await asyncio.gather(*(client.run(agent.name, "count") for agent in agents))
        session = await client.session("chat", agent="reason")
        reply = await session.say("count")
    because = "The conversation does not fit the model: 4096 tokens are the most"
    assert [outcome.output for outcome in outcomes] == ["First I count.", "Ask in the shop.", because, None]
    assert {outcome.stop_reason for outcome in outcomes} == {"context_overflow"}
    assert {outcome.error.message for outcome in outcomes if outcome.error} == {"4096 tokens are the most"}
    assert reply.text == because


async def test_read_back_outlives_a_continued_run(impatient: DevServer, tmp_path: Path) -> None:
    """A run that has continued as new reads back what left its window before, by words and by number."""
    read: list[str] = []

    def script(request: ModelRequest) -> Line:
        if not request.tools:
            return says("boxes were counted")
        if request.step <= 20:
            return calls("count_shelf", shelf=request.step)
        offered = [tool.name for tool in request.tools]
        assert "read_back" in offered
        if request.step > 21:
            read.append(request.messages[-1].text)
        if request.step == 21:
            return calls("read_back", words="shelf 2:")
        return calls("read_back", first=2, last=3) if request.step == 22 else says("read")

    depot = Agent(
        name="depot",
        model="scripted:x",
        tools=[count_shelf],
        context=Summary(messages=8, tokens=None),
        limits=Limits(steps=40),
    )
    used = load_settings(home=tmp_path, address=impatient.address, task_queue="read-back")
    models = {"scripted": ScriptedModel(script)}
    async with running([depot], models=models, settings=used, address=impatient.address) as client:
        run = await client.start("depot", "count", id="read-back")
        result = await run.result()
        described = await run.describe()
    first = described.raw_description.workflow_execution_info.first_run_id
    assert described.run_id != first, "it has continued as new"
    assert result.output == "read"
    assert all("shelf 2: 3 boxes" in text for text in read[:1])
    assert "[3] tool: count_shelf returned: shelf 1: 3 boxes" in read[1]


async def test_no_step_waits_long_for_summary(serve: Serve) -> None:
    """A summarizer that asks for time is not waited for; after a short delay it is asked again. Cut words are used."""
    asked: Counter[str] = Counter()
    seen: dict[str, list[str]] = defaultdict(list)
    delays = {"minutes": timedelta(minutes=5), "second": timedelta(seconds=1)}

    def script(request: ModelRequest) -> Line:
        row = str(request.user)
        seen[row] += [text for text in shown(request) if "THE-SUMMARY" in text]
        return calls("count_shelf", shelf=request.step) if request.step < 7 else says("done")

    def summarize(request: ModelRequest) -> Line:
        row = str(request.user)
        asked[row] += 1
        if row in delays and (asked[row] == 1 or row == "minutes"):
            return fails("rate_limited", "slow down", retry_after=delays[row])
        return says("THE-SUMMARY", stop="max_tokens" if row == "cut" else None)

    rows = ["minutes", "second", "cut"]
    depots = [
        Agent(
            name=row,
            model="scripted:x",
            tools=[count_shelf],
            context=Summary(messages=6, tokens=None, model=f"{row}:x"),
        )
        for row in rows
    ]
    models = {"scripted": ScriptedModel(script), **{row: ScriptedModel(summarize) for row in rows}}
    async with serve(*depots, models=models) as client, asyncio.timeout(HANGS):
        runs = [await client.start(row, "count", user=row) for row in rows]
        assert [(await run.result()).output for run in runs] == ["done"] * 3
    assert not seen["minutes"]
    assert seen["second"]
    assert seen["cut"][0].endswith("THE-SUMMARY\n(The summary was cut here by its length.)")


async def test_summary_is_in_history_once(serve: Serve) -> None:
    """The text of a summary stands in history where it was written, and no later model call repeats it."""
    words = "THE-SUMMARY " * 20

    def script(request: ModelRequest) -> Line:
        if not request.tools:
            return says(words)
        if request.step > 12:
            return says(str(any(words.strip() in text for text in shown(request))))
        return calls("count_shelf", shelf=request.step)

    depot = Agent(
        name="depot",
        model="scripted:x",
        tools=[count_shelf],
        context=Summary(messages=14, tokens=None, keep=0.3),
    )
    async with serve(depot, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("depot", "count")
        result = await run.result()
        described = await run.describe()
        handle = client.temporal.get_workflow_handle(run.id, run_id=described.run_id)
        events = (await handle.fetch_history()).events
    assert result.output == "True", "the model read it at its last step"
    written = [event for event in events if words.strip().encode() in event.SerializeToString()]
    asked = [event for event in events if _asks_for_summary(event)]
    assert len(written) == len(asked) > 0


def _asks_for_summary(event: HistoryEvent) -> bool:
    scheduled = event.activity_task_scheduled_event_attributes
    return any(b'"summarize":' in payload.data for payload in scheduled.input.payloads)
