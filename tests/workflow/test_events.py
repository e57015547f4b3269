"""Watching: text as it is written, without loss or repetition, at no cost to history."""

import asyncio

from perdure import Agent, ToolContext, tool
from perdure.model import ModelRequest
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.wire.events import (
    ApprovalRequested,
    Event,
    Finished,
    MessageFinished,
    StatusChanged,
    TextAssembler,
    TextDelta,
    TextRestarted,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from tests.conftest import Gate, Serve

ANSWER = "".join(f"word{n} " for n in range(3000))


async def collect(run: Run) -> list[Event]:
    return [event async for event in run.events()]


def joined(events: list[Event], step: int) -> str:
    """What somebody has on the screen who prints pieces, and clears it when told to."""
    text = ""
    for event in events:
        if isinstance(event, TextDelta) and event.step == step:
            assert event.offset == len(text), "pieces follow each other without gap or overlap"
            text += event.text
        if isinstance(event, TextRestarted) and event.step == step:
            text = ""
    return text


async def test_text_arrives_while_it_is_written(serve: Serve) -> None:
    """In pieces without gap or overlap, which add up to the answer and cost no history."""
    gate = Gate()

    class Slow:
        """Waits in the middle until a watcher has seen the first half."""

        def check(self, config: object) -> None: ...

        async def stream(self, request: ModelRequest):  # type: ignore[no-untyped-def]
            inner = ScriptedModel([says(ANSWER)], chunk=50)
            count = 0
            async for event in inner.stream(request):
                count += 1
                if count == 100:
                    await gate.wait()
                yield event

    async with serve(Agent(name="a", model="slow:x"), models={"slow": Slow()}) as client:
        run = await client.start("a", "go")
        events: list[Event] = []
        async for event in run.events():
            events.append(event)
            if isinstance(event, TextDelta):
                gate.opened.set()
        history = (await run.describe()).raw_description.workflow_execution_info.history_size_bytes
    pieces = [event for event in events if isinstance(event, TextDelta)]
    assert len(pieces) >= 2, "it came in pieces, the first while the model was still writing"
    assert joined(events, 1) == ANSWER
    assert isinstance(events[-1], Finished)
    assert events[-1].result is not None
    assert events[-1].result.output == ANSWER
    assert history < 2 * len(ANSWER) + 8_000, "the reply, the result, and nothing for the pieces"


async def test_answer_arrives_without_a_worker(serve: Serve) -> None:
    """The server has the result of a run that has ended."""
    agent = Agent(name="a", model="scripted:x")
    async with serve(agent, models={"scripted": ScriptedModel([says(ANSWER)])}) as client:
        run = await client.start("a", "go")
        await run.result()
    events = await collect(run)
    assert joined(events, 1) == ANSWER
    assert isinstance(events[-1], Finished)


async def test_watchers_survive_a_broken_attempt(serve: Serve) -> None:
    """Twenty watchers have the same text after an attempt broke off."""
    tries = 0

    def script(request: ModelRequest) -> Line:
        nonlocal tries
        tries += 1
        if tries == 1:
            return says("false start " * 200) + fails("connection")
        return says(ANSWER)

    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel(script)}
    ) as client:
        run = await client.start("a", "go")
        async with asyncio.TaskGroup() as group:
            watchers = [group.create_task(collect(run)) for _ in range(20)]
    for watcher in watchers:
        events = watcher.result()
        assert joined(events, 1) == ANSWER
        reader = TextAssembler()
        for event in events:
            reader.feed(event)
        assert reader.text(1) == ANSWER


async def test_events_of_a_tool_call_are_ordered(serve: Serve) -> None:
    """Of an approved call with progress; a late watcher gets the same from the transcript."""
    gate = Gate()

    @tool(approval=True)
    async def work(context: ToolContext) -> str:
        """Work."""
        context.progress("half way")
        await gate.wait()
        return "worked"

    script = [says("One moment.") + calls("work"), says("done")]
    async with serve(
        Agent(name="a", model="scripted:x", tools=[work]), models={"scripted": ScriptedModel(script)}
    ) as client:
        run = await client.start("a", "go")
        events: list[Event] = []
        async for event in run.events():
            events.append(event)
            if isinstance(event, ApprovalRequested):
                await run.resolve_approval(event.approval.call_id, allow=True)
            if isinstance(event, ToolProgress):
                assert event.text == "half way"
                gate.opened.set()
        again = await collect(run)
    kinds = [type(event) for event in events if not isinstance(event, StatusChanged)]
    assert kinds == [
        TextDelta,
        MessageFinished,
        ApprovalRequested,
        ToolStarted,
        ToolProgress,
        ToolFinished,
        TextDelta,
        MessageFinished,
        Finished,
    ]
    statuses = [event.status for event in events if isinstance(event, StatusChanged)]
    assert "waiting_approval" in statuses
    told_later = [type(event) for event in again]
    assert told_later == [
        TextDelta,
        MessageFinished,
        ToolStarted,
        ToolFinished,
        TextDelta,
        MessageFinished,
        Finished,
    ], "who comes late is told the same, from the transcript"


async def test_a_failed_run_finishes_as_failed(serve: Serve) -> None:
    async with serve(
        Agent(name="a", model="scripted:x"), models={"scripted": ScriptedModel([fails("bug")])}
    ) as client:
        run = await client.start("a", "go")
        events = await collect(run)
    assert isinstance(events[-1], Finished)
    assert events[-1].status == "failed"
    assert events[-1].error is not None
    assert events[-1].error.kind == "bug"
