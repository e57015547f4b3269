"""Sessions: turns, messages that come again, limits, idleness, and continue-as-new in mid-turn."""

import asyncio
import base64
import collections
import contextlib
import gc
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    InvalidRequest,
    Limits,
    RunConflict,
    RunEnded,
    RunNotFound,
    Session,
    TurnReply,
    ask_person,
    tool,
)
from perdure.activities.content.blobs import FileBlobs
from perdure.errors import ModelError
from perdure.messages import Image, Part, Text, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.wire.events import (
    ApprovalRequested,
    Event,
    MessageFinished,
    TextDelta,
    ToolFinished,
    TurnFinished,
)
from perdure.workers.dev.server import DevServer
from perdure.workflows.engine.session import MOST_ANSWERED
from tests.conftest import Gate, Serve, texts, until, until_status
from tests.pictures import PNG, png
from tests.serving import running
from tests.workflow.test_history import history_sizes

TURNS = int(os.environ.get("LONG_TURNS", "280"))
"""Turns of the longest session: it continues as new by itself after some 240. `make stress` sets 1,000."""


@tool
async def work(n: int) -> str:
    """Work."""
    return "x" * 200


@tool(approval=True, effect="write")
async def pay(n: int) -> str:
    """Pay."""
    return f"paid {n}"


def chatty(**changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": "chatty", "model": "scripted:x", "tools": [work, pay, ask_person]}
    return Agent(**{**settings, **changed})


def newest(request: ModelRequest) -> str:
    """What the person said last."""
    return next(m.text for m in reversed(request.messages) if m.role == "user")


def echo(request: ModelRequest) -> Line:
    """Says what was said; "work n" calls a tool first, n times."""
    said = newest(request)
    if said.startswith("work "):
        done = 0
        for message in reversed(request.messages):
            if message.role == "user":
                break
            done += message.role == "tool"
        if done < int(said.removeprefix("work ")):
            return calls("work", n=done)
    return says(f"you said: {said}")


def models(script: Any = echo) -> dict[str, Any]:
    return {"scripted": ScriptedModel(script)}


async def test_session_remembers_earlier_turns(serve: Serve) -> None:
    seen: list[list[str]] = []

    def script(request: ModelRequest) -> Line:
        seen.append(texts(request.messages))
        return echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("session-77", agent="chatty", user="ann")
        first = await session.say("I am Ann")
        second = await session.say([Text(text="who am I?")])
        status = await session.status()
        described = await session.run.describe()
    assert (first.turn, first.text, first.output, first.stop_reason, first.done) == (
        1,
        "you said: I am Ann",
        "you said: I am Ann",
        "end_turn",
        True,
    )
    assert (second.turn, second.text, second.steps) == (2, "you said: who am I?", 1)
    assert seen[1] == ["I am Ann", "you said: I am Ann", "who am I?"]
    assert (status.status, status.kind, status.turn, status.messages) == ("idle", "session", 2, 4)
    assert first.usage + second.usage == status.usage
    assert first.cost_microusd is not None
    assert second.cost_microusd is not None
    assert first.cost_microusd + second.cost_microusd == status.cost_microusd
    assert described.workflow_type == "SessionWorkflow"


async def test_session_starts_with_first_message(serve: Serve) -> None:
    async with serve(chatty(), models=models()) as client:
        session = await client.session("silent", agent="chatty")
        with pytest.raises(RunNotFound):
            await session.status()
        with pytest.raises(RunNotFound):
            await client.session("silent")


@pytest.mark.parametrize("cached", [True, False])
async def test_repeated_message_id_answers_once(serve: Serve, cached: bool) -> None:
    answered: list[str] = []

    def script(request: ModelRequest) -> Line:
        answered.append(newest(request))
        return echo(request)

    cache = {} if cached else {"max_cached_workflows": 0}
    async with serve(chatty(), models=models(script), worker=cache) as client:
        session = await client.session(f"twice-{cached}", agent="chatty")
        first = await session.say("one", id="m1")
        again = await session.say("one", id="m1")
        others = await asyncio.gather(*(session.say("two", id="m2") for _ in range(5)))
        transcript = await session.transcript()
        await session.close()
        await session.run.result()
        attached = await client.session(f"twice-{cached}")
        late = await attached.say("one", id="m1")
        with pytest.raises(RunEnded):
            await attached.say("three", id="m3")
    assert first == again == late
    assert {reply.text for reply in others} == {"you said: two"}
    assert answered == ["one", "two"]
    assert len(transcript) == 4


async def test_turns_are_serial_and_ordered(serve: Serve) -> None:
    """Turns are serial, and queued messages are answered in order."""
    gate, answered = Gate(), list[str]()

    async def script(request: ModelRequest) -> Line:
        if newest(request) == "first":
            await gate.wait()
        answered.append(newest(request))
        return echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("serial", agent="chatty")
        first = asyncio.create_task(session.say("first"))
        await gate.reached.wait()
        others: list[asyncio.Task[TurnReply]] = []
        for n in range(15):
            others.append(asyncio.create_task(session.say(f"m{n}")))

            async def queued(n: int = n) -> bool:
                assert not others[n].done(), others[n].result()
                return (await session.status()).queued == n + 1

            await until(queued)
        gate.opened.set()
        replies = [await first, *[await other for other in others]]
    said = ["first", *[f"m{n}" for n in range(15)]]
    assert answered == said, "more at once than the server lets wait"
    assert [reply.text for reply in replies] == [f"you said: {one}" for one in said]
    assert [reply.turn for reply in replies] == list(range(1, 17))


async def test_a_burst_of_messages_loses_none(serve: Serve) -> None:
    async with serve(chatty(), models=models()) as client:
        opened = await client.session("burst", agent="chatty")
        await opened.say("hello")
        replies = await asyncio.gather(*(opened.say(f"m{n}") for n in range(40)))
        transcript = await opened.transcript()
    assert [reply.text for reply in replies] == [f"you said: m{n}" for n in range(40)]
    assert sorted(reply.turn for reply in replies) == list(range(2, 42))
    assert len(transcript) == 82


async def test_message_in_turn_steers_it(serve: Serve) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        if request.step == 1:
            await gate.wait()
            return calls("work", n=1)
        return says(" and ".join(m.text for m in request.messages if m.role == "user"))

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("steered", agent="chatty")
        first = asyncio.create_task(session.say("find it"))
        await gate.reached.wait()
        second = asyncio.create_task(session.say("the red one", when_busy="steer"))

        async def unread() -> bool:
            return (await session.status()).queued == 1

        await until(unread)
        gate.opened.set()
        replies = await first, await second
    assert {reply.text for reply in replies} == {"find it and the red one"}
    assert {reply.turn for reply in replies} == {1}
    assert replies[0].message_id != replies[1].message_id


async def test_a_turn_that_fails_fails_alone(serve: Serve) -> None:
    def script(request: ModelRequest) -> Line:
        return fails("bad_request", "no") if newest(request) == "bad" else echo(request)

    async with serve(chatty(on_failure="fail"), models=models(script)) as client:
        session = await client.session("failing", agent="chatty")
        await session.say("good")
        failed = await session.say("bad")
        after = await session.say("good again")
    assert failed.stop_reason == "error"
    assert failed.error is not None
    assert failed.error.kind == "bad_request"
    assert failed.text == "", "the words of an earlier turn are not this one's"
    assert (after.turn, after.text, after.error) == (3, "you said: good again", None)


async def test_parked_turn_resumes(serve: Serve) -> None:
    broken = True

    def script(request: ModelRequest) -> Line:
        return fails("authentication", "key") if broken else echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("session-parked", agent="chatty")
        saying = asyncio.create_task(session.say("hello"))

        async def parked() -> bool:
            try:
                return (await session.status()).status == "parked"
            except (RunNotFound, InvalidRequest):
                return False

        await until(parked)
        broken = False
        await session.run.resume()
        assert (await saying).text == "you said: hello"


async def test_approvals_and_questions_within_turn(serve: Serve) -> None:
    def script(request: ModelRequest) -> Any:
        match request.step:
            case 1:
                return calls("pay", n=7)
            case 2:
                return calls("ask_person", question="Which?")
            case _:
                return says(" ".join(r.text for m in request.messages for r in m.tool_results))

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("people", agent="chatty")
        seen: list[Event] = []
        async for event in session.stream("go"):
            seen.append(event)
            if isinstance(event, ApprovalRequested):
                await session.resolve_approval(event.approval.call_id, allow=True)
            elif event.kind == "question_asked":
                await session.run.send("the red one")
    last = seen[-1]
    assert isinstance(last, TurnFinished)
    assert last.reply.text == "paid 7 the red one"
    assert [e.tool for e in seen if isinstance(e, ToolFinished)] == ["pay", "ask_person"]


async def test_stream_has_its_turn_alone(serve: Serve) -> None:
    """A stream has its own turn in full, and nothing of earlier turns."""
    async with serve(chatty(), models=models()) as client:
        session = await client.session("streamed", agent="chatty")
        first = [event async for event in session.stream("one")]
        second = [event async for event in session.stream("work 2")]
    assert "".join(e.text for e in first if isinstance(e, TextDelta)) == "you said: one"
    assert "".join(e.text for e in second if isinstance(e, TextDelta)) == "you said: work 2"
    assert [e.index for e in second if isinstance(e, MessageFinished)] == [3, 5, 7]
    assert sum(isinstance(e, ToolFinished) for e in second) == 2
    assert isinstance(second[-1], TurnFinished)
    assert second[-1].reply.turn == 2


async def test_limits_per_turn_and_session(serve: Serve) -> None:
    agent = chatty(limits=Limits(steps=3, per_tool={"work": 2}, per_tool_ends=True))
    async with serve(agent, models=models()) as client:
        session = await client.session("bounded", agent="chatty", session_limits=Limits(steps=8))
        replies = [await session.say(text) for text in ("work 9", "work 1", "hello", "hi", "work 9")]
        result = await session.run.result()
        with pytest.raises(RunEnded):
            await session.say("more?")
    assert [(r.stop_reason, r.steps) for r in replies] == [
        ("max_tool_calls", 3),
        ("end_turn", 2),
        ("end_turn", 1),
        ("end_turn", 1),
        ("max_steps", 1),
    ]
    assert [r.tool_calls for r in replies] == [2, 1, 0, 0, 1]
    assert (result.stop_reason, result.steps, result.tool_calls) == ("max_steps", 8, 4)


async def test_cost_limits_of_turn_and_session(serve: Serve) -> None:
    async with serve(chatty(), models=models()) as client:
        free = await client.session("free", agent="chatty")
        cost = (await free.say("hello")).cost_microusd
        assert cost is not None
        bound = Limits(cost_usd=cost * 5 / 1_000_000)
        session = await client.session("dear", agent="chatty", session_limits=bound)
        replies = [await session.say("hello")]
        with contextlib.suppress(RunEnded):
            for _ in range(50):
                replies.append(await session.say("hello"))  # noqa: PERF401 - kept when one raises
        result = await session.run.result()
    assert result.stop_reason == "cost_budget"
    assert result.cost_microusd is not None
    assert result.cost_microusd <= cost * 5
    assert result.cost_microusd == sum(reply.cost_microusd or 0 for reply in replies)


async def test_a_turn_has_its_own_deadline(serve: Serve) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        if newest(request) == "hang":
            await gate.wait()
        return echo(request)

    agent = chatty(limits=Limits(timeout=timedelta(seconds=1)))
    async with serve(agent, models=models(script)) as client:
        session = await client.session("timed", agent="chatty")
        first = await session.say("hello")
        late = await session.say("hang")
        after = await session.say("still there?")
    assert (first.stop_reason, late.stop_reason, after.stop_reason) == ("end_turn", "deadline", "end_turn")


async def test_interrupt_ends_turn_not_session(serve: Serve) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        if newest(request) == "hang":
            await gate.wait()
        return echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("session-interrupted", agent="chatty")
        hanging = asyncio.create_task(session.say("hang"))
        await gate.reached.wait()
        await session.interrupt()
        interrupted = await hanging
        await session.interrupt()
        after = await session.say("go on")
    assert interrupted.stop_reason == "stopped"
    assert (after.text, after.turn) == ("you said: go on", 2)


async def test_abandoned_tool_stays_in_its_turn(serve: Serve) -> None:
    """A tool call abandoned in a turn does not affect the next."""
    gate = Gate()

    @tool(timeout=timedelta(seconds=30))
    async def stubborn() -> str:
        """Do not stop when told to."""
        while not gate.opened.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    def script(request: ModelRequest) -> Line:
        return calls("stubborn") if request.step == 1 else echo(request)

    async with serve(chatty(tools=[stubborn]), models=models(script)) as client:
        session = await client.session("stubborn", agent="chatty")
        first = asyncio.create_task(session.say("go"))
        await gate.reached.wait()
        await session.interrupt()
        assert (await first).stop_reason == "stopped"
        gate.opened.set()
        assert (await session.say("next")).text == "you said: next"
        assert (await session.say("and next")).text == "you said: and next"


async def test_stop_closes_session(serve: Serve) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        await gate.wait()
        return echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("stopped", agent="chatty")
        running_turn = asyncio.create_task(session.say("one"))
        await gate.reached.wait()
        queued = asyncio.create_task(session.say("two"))

        async def is_queued() -> bool:
            return (await session.status()).queued == 1

        await until(is_queued)
        await session.close()
        assert (await running_turn).stop_reason == "stopped"
        with pytest.raises(RunEnded, match="before it read"):
            await queued
        assert (await session.run.result()).stop_reason == "stopped"


async def test_late_message_is_rejected_once(serve: Serve) -> None:
    unread = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    async with serve(chatty(), models=models()) as client:
        first, late = [await client.session("closed", agent="chatty") for _ in range(2)]
        await first.say("one")
        await first.close()
        await first.run.result()
        with pytest.raises(RunEnded, match="is over"):
            await late.say("two")
    gc.collect()  # futures whose errors nobody has read say so when they are collected
    assert not unread


async def test_a_cancelled_session_ends_as_cancelled(serve: Serve) -> None:
    async with serve(chatty(), models=models()) as client:
        session = await client.session("cancelled", agent="chatty")
        await session.say("one")
        await session.cancel()
        result = await session.run.result()
    assert (result.stop_reason, result.steps) == ("cancelled", 1)


async def test_idle_session_closes_after_max_idle(serve: Serve) -> None:
    async with serve(chatty(), models=models()) as client:
        session = await client.session("idle", agent="chatty", max_idle=timedelta(seconds=1))
        replies = [await session.say(text) for text in ("one", "two")]
        result = await session.run.result()
        with pytest.raises(RunEnded, match="reopen=True"):
            await client.session("idle", agent="chatty", max_idle=timedelta(seconds=1))
        anew = await client.session("idle", agent="chatty", max_idle=timedelta(seconds=1), reopen=True)
        first = await anew.say("again")
    assert result.stop_reason == "idle"
    assert result.output == replies[-1].output
    assert first.turn == 1


async def test_waiting_turn_is_not_idle(serve: Serve) -> None:
    """A turn that waits for a person is not idle."""

    def script(request: ModelRequest) -> Line:
        return calls("pay", n=1) if request.step == 1 else says("done")

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("patient", agent="chatty", max_idle=timedelta(milliseconds=200))
        saying = asyncio.create_task(session.say("pay"))

        async def fired() -> bool:
            try:
                history = await session.run.handle.fetch_history()
            except Exception:
                return False
            return sum(e.HasField("timer_fired_event_attributes") for e in history.events) >= 3

        await until(fired)
        assert (await session.status()).status == "waiting_approval"
        await session.resolve_approval("call-1-1", allow=True)
        assert (await saying).text == "done"


async def test_foreign_session_id_is_rejected(serve: Serve) -> None:
    async with serve(chatty(), chatty(name="other"), models=models()) as client:
        await (await client.session("mine", agent="chatty", user="ann")).say("hello")
        with pytest.raises(RunConflict, match="another request"):
            await client.session("mine", agent="other", user="ann")
        with pytest.raises(RunConflict, match="another request"):
            await client.session("mine", agent="chatty", user="bob")
        same = await client.session("mine", agent="chatty", user="ann")
        assert (await same.say("me again")).turn == 2
        run = await client.start("chatty", "go", id="a-run")
        await run.result()
        with pytest.raises(RunConflict, match="AgentWorkflow"):
            await client.session("a-run", agent="chatty")
        with pytest.raises(RunConflict, match="SessionWorkflow"):
            await client.start("chatty", "go", id="mine")


WRONG: list[tuple[Any, str]] = [
    ({"id": "1", "text": " "}, "send a text"),
    ({"id": "1", "text": []}, "send a text"),
    ({"id": "", "text": "x"}, "id"),
    ({"id": "x" * 257, "text": "x"}, "id"),
    ({"text": "x"}, "id: Field required"),
    ({"id": "1", "text": "x", "when_busy": "shout"}, "when_busy"),
    ({"id": "1", "text": "x", "loud": True}, "loud"),
    (
        {"id": "1", "text": [{"kind": "tool_call", "id": "1", "name": "x", "arguments": {}}]},
        "not a 'tool",
    ),
    ("hello", "message"),
]


@pytest.mark.parametrize(("message", "says_why"), WRONG)
async def test_wrong_message_leaves_no_trace(serve: Serve, message: Any, says_why: str) -> None:
    from temporalio.client import WorkflowUpdateFailedError

    async with serve(chatty(), models=models()) as client:
        session = await client.session("strict", agent="chatty", reopen=True)
        await session.say("hello")
        length = (await session.run.describe()).history_length
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await session.run.handle.execute_update("say", message)
        assert says_why in str(refused.value.cause)
        assert (await session.run.describe()).history_length == length
        await session.close()
        await session.run.result()


async def test_first_message_waits_for_the_agent(serve: Serve) -> None:
    """A session of an agent that no worker serves says so, and its first message waits until it ends."""
    async with serve(chatty(), models=models()) as client:
        session = await client.session("wrong-nobody", agent="nobody")
        saying = asyncio.create_task(session.say("hello"))

        async def says_why() -> bool:
            try:
                return "no worker serves 'nobody'" in (await session.run.status()).doing
            except RunNotFound:
                return False

        await until(says_why)
        await session.run.stop()
        with pytest.raises(RunEnded):
            await saying
        with pytest.raises(InvalidRequest, match="max_idle"):
            await client.session("x", agent="chatty", max_idle=timedelta())


async def test_sessions_take_pictures_and_types(serve: Serve) -> None:
    """Sessions take pictures and output types."""
    from pydantic import BaseModel

    class Answer(BaseModel):
        n: int

    def script(request: ModelRequest) -> Line:
        return calls("final_answer", n=request.step)

    async with serve(chatty(output_type=Answer), models=models(script)) as client:
        session = await client.session("typed", agent="chatty")
        picture = Image(media_type="image/png", data=PNG)
        replies = [await session.say([Text(text="look"), picture]), await session.say("again")]
    assert [reply.output for reply in replies] == [{"n": 1}, {"n": 2}]


async def test_sessions_are_listed_with_runs(serve: Serve) -> None:
    async with serve(chatty(name="listed"), models=models()) as client:
        await (await client.session("listed-session", agent="listed", user="ann")).say("hello")
        await client.run("listed", "go", id="listed-run")

        async def both() -> bool:
            found = {info.id: info async for info in client.list(agent="listed")}
            if len(found) < 2:
                return False
            session = found["listed-session"]
            assert (session.kind, found["listed-run"].kind) == ("session", "run")
            return (session.status, session.user) == ("idle", "ann")

        await until(both)


def impatiently(
    server: DevServer, settings: Settings, *agents: Agent, script: Any = echo, **worker: Any
) -> AbstractAsyncContextManager[Client]:
    mine = settings.model_copy(update={"address": server.address})
    return running(agents, models=models(script), address=server.address, settings=mine, worker=worker)


@pytest.mark.parametrize(("turns", "long", "cache"), [(40, 25, {}), (8, 9, {"max_cached_workflows": 0})])
async def test_continue_as_new_in_turn_loses_nothing(
    impatient: DevServer, settings: Settings, turns: int, long: int, cache: dict[str, Any]
) -> None:
    """A session that continues as new in mid-turn loses nothing."""
    async with impatiently(impatient, settings, chatty(), **cache) as client:
        session = await client.session(f"long-{turns}", agent="chatty")
        replies: list[TurnReply] = []
        for n in range(turns):
            text = f"work {long}" if n in (turns // 3, turns - 4) else "work 1" if n % 3 == 0 else f"m{n}"
            replies.append(await session.say(text, id=f"id-{n}"))
        again = [await session.say("?", id=f"id-{n}") for n in (0, turns // 3, turns - 1)]
        transcript = await session.transcript()
        status = await session.status()
        sizes = await history_sizes(client, session.id)
    assert len(sizes) > 2 * (long // 9), "the long turns do not fit one history"
    assert [reply.turn for reply in replies] == list(range(1, turns + 1))
    assert all(reply.stop_reason == "end_turn" for reply in replies)
    assert again == [replies[0], replies[turns // 3], replies[-1]]
    assert sum(reply.steps for reply in replies) == status.step
    assert sum(reply.tool_calls for reply in replies) == status.tool_calls
    assert sum(reply.cost_microusd or 0 for reply in replies) == status.cost_microusd
    assert sum((reply.usage for reply in replies[1:]), replies[0].usage) == status.usage
    said = [message.text for message in transcript if message.role == "assistant" and message.text]
    assert said == [reply.text for reply in replies]
    ids = [call.id for message in transcript for call in message.tool_calls]
    assert [n for n, count in collections.Counter(ids).items() if count > 1] == []


async def test_messages_survive_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    """Messages that come while a session continues as new in mid-turn are answered."""
    async with impatiently(impatient, settings, chatty()) as client:
        session = await client.session("crowded", agent="chatty")
        await session.say("hello")
        long = [asyncio.create_task(session.say("work 20")) for _ in range(2)]
        short = [asyncio.create_task(session.say(f"m{n}", id=f"m{n}")) for n in range(12)]
        same = [asyncio.create_task(session.say(f"m{n}", id=f"m{n}")) for n in range(12)]
        replies = await asyncio.gather(*long, *short, *same)
        sizes = await history_sizes(client, "crowded")
        transcript = await session.transcript()
    assert len(sizes) > 2
    assert [reply.text for reply in replies[2:14]] == [f"you said: m{n}" for n in range(12)]
    assert replies[2:14] == replies[14:]
    users = collections.Counter(message.text for message in transcript if message.role == "user")
    assert users == {"hello": 1, "work 20": 2, **{f"m{n}": 1 for n in range(12)}}


async def test_turn_deadline_survives_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        if request.step > 16:
            await gate.wait()
        return calls("work", n=request.step)

    agent = chatty(limits=Limits(steps=None, timeout=timedelta(seconds=6)))
    async with impatiently(impatient, settings, agent, script=script) as client:
        session = await client.session("deadline", agent="chatty")
        reply = await session.say("go")
        sizes = await history_sizes(client, "deadline")
    assert gate.reached.is_set()
    assert len(sizes) > 1
    assert reply.stop_reason == "deadline"


async def test_idle_time_survives_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    async with impatiently(impatient, settings, chatty()) as client:
        session = await client.session("idling", agent="chatty", max_idle=timedelta(seconds=2))
        await session.say("work 30")
        result = await session.run.result()
    assert result.stop_reason == "idle"


@pytest.mark.slow
async def test_long_session_has_small_histories(serve: Serve) -> None:
    """A long session continues as new by itself, has small histories and loses nothing."""
    async with serve(chatty(), models=models()) as client:
        session = await client.session("very-long", agent="chatty", stream=False)
        replies = [await session.say("work 1" if n % 2 else f"m{n}", id=f"id-{n}") for n in range(TURNS)]
        # A session remembers its newest answers.
        early = max(0, TURNS - MOST_ANSWERED // 2)
        again = await session.say("?", id=f"id-{early}")
        transcript = await session.transcript()
        sizes = await history_sizes(client, "very-long")
    assert [reply.turn for reply in replies] == list(range(1, TURNS + 1))
    assert again == replies[early]
    assert len(transcript) == TURNS // 2 * (2 + 4)
    assert len(sizes) > 1
    assert max(sizes) < 6_000_000, sizes


async def test_queries_do_not_time_out_meanwhile(serve: Serve) -> None:
    """Queries to a session do not time out while a person decides."""

    def script(request: ModelRequest) -> Line:
        return calls("pay", n=1) if request.step == 1 else echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("slow-person", agent="chatty")
        first = asyncio.create_task(session.say("pay"))

        async def begun() -> bool:
            try:
                return (await session.status()).status == "waiting_approval"
            except (RunNotFound, InvalidRequest):
                return False

        await until(begun)
        queued = asyncio.create_task((await client.session("slow-person")).say("and then?"))
        await until_status(client, "slow-person", "waiting_approval")
        await session.resolve_approval("call-1-1", allow=False, reason="no")
        assert (await first).turn == 1
        assert (await queued).text == "you said: and then?"


def test_the_names_are_public() -> None:
    assert Session.__module__ == "perdure.starter.client.session"


class _Picky:
    """Model whose provider refuses requests with a certain picture, for a reason of its own."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []

    def check(self, config: ModelConfig) -> None:
        pass

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        self.requests.append(request)
        parts = [part for message in request.messages for part in message.parts]
        if any(isinstance(part, Image) and part.data == REFUSED for part in parts):
            raise ModelError("bad_request", "image: its colours are not allowed")
        yield Reply(parts=(Text(text="seen"),), stop="end_turn", usage=Usage(input_tokens=1, output_tokens=1))


REFUSED = base64.b64encode(png(b"refused")).decode()


async def test_session_survives_refused_picture(serve: Serve) -> None:
    """A picture that the provider refuses is told in words, in this turn and, without another refusal, in the next.

    A picture that was seen before is still sent, and the transcript keeps both.
    """
    picky = _Picky()
    async with serve(chatty(model="picky:x"), models={"picky": picky}) as client:
        session = await client.session("pictures", agent="chatty")
        turns: list[list[Part]] = [
            [Image(data=PNG)],
            [Text(text="and?"), Image(data=REFUSED)],
            [Text(text="go on")],
        ]
        ends = [(await session.say(turn)).stop_reason for turn in turns]
        kept = [
            part.data
            for message in await session.transcript()
            for part in message.parts
            if part.kind == "image"
        ]
    assert ends == ["end_turn"] * 3
    assert kept == [PNG, REFUSED]
    assert len(picky.requests) == 4
    last = picky.requests[-1].messages
    assert [part.data for message in last for part in message.parts if isinstance(part, Image)] == [PNG]
    assert "the provider has refused it" in last[2].text


async def test_session_survives_refused_thought(serve: Serve) -> None:
    """A thought that the provider refuses is left out of the request, without thinking, and stays in the transcript."""
    asked: list[ModelRequest] = []

    def script(request: ModelRequest) -> Line:
        asked.append(request)
        thoughts = [part for message in request.messages for part in message.parts if part.kind == "thinking"]
        if thoughts:
            return fails("bad_request", "messages.1.content.0: Invalid `signature` in `thinking` block")
        return says("hello", thinking="" if request.config.thinking == "off" else "hm")

    config = ModelConfig(name="scripted:x", thinking="adaptive")
    async with serve(chatty(model=config), models={"scripted": ScriptedModel(script)}) as client:
        session = await client.session("thoughts", agent="chatty")
        ends = [(await session.say(text)).text for text in ("one", "two")]
        messages = await session.transcript()
    assert ends == ["hello", "hello"]
    assert [request.config.thinking for request in asked] == ["adaptive", "adaptive", "off"]
    assert [part.kind for part in messages[1].parts] == ["thinking", "text"]
    reply = messages[3].meta
    assert reply is not None
    assert "asked once more in plain form" in reply.errors[0]


def _damage_all(folder: Path) -> None:
    for path in filter(Path.is_file, folder.rglob("*")):
        path.chmod(0o600)
        path.write_bytes(bytes(path.stat().st_size))


async def test_damaged_picture_is_told_in_words(settings: Settings, tmp_path: Path) -> None:
    """A picture whose bytes in the store are damaged holds up no turn: the model reads why it cannot see it."""
    blobs = FileBlobs(tmp_path)
    picture = Image(blob=await blobs.put(png(b"damaged")))
    _damage_all(tmp_path)
    read: list[str] = []

    def script(request: ModelRequest) -> Line:
        read.append(request.messages[0].text)
        return says("hello")

    mine = settings.model_copy(update={"blob_store": f"file:{tmp_path}"})
    async with running([chatty()], models={"scripted": ScriptedModel(script)}, settings=mine) as client:
        session = await client.session("damaged", agent="chatty")
        turns: list[list[Part]] = [[picture], [Text(text="Are you there?")]]
        replies = [await session.say(turn) for turn in turns]
    assert [reply.text for reply in replies] == ["hello", "hello"]
    assert all("damaged there" in text for text in read)
