"""Sessions after a limit: the last turn goes on with more, and a session that its limits have closed is open again."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, InvalidRequest, Limits, Swarm, SwarmLimits, ToolContext, tool
from perdure.errors import RunEnded
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import HANGS, Gate, Serve

USED = Usage(input_tokens=1000, output_tokens=100)
WANTED = 4
"""Calls of `work` in a turn after which the script is done."""


class Desk:
    """An agent that works in each turn, and the keys of what it has done."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.asked: list[ModelRequest] = []
        self.gate = Gate()
        self.gate.opened.set()

    async def script(self, request: ModelRequest) -> Line:
        """Work as often as wanted since the last message of the person's."""
        self.asked.append(request)
        await self.gate.wait()
        texts = [m.text for m in request.messages if m.role == "user" and not m.text.startswith("You were")]
        if texts[-1].endswith("hello"):
            return says("hello", usage=USED)
        asked = max(i for i, m in enumerate(request.messages) if m.role == "user" and m.text == texts[-1])
        worked = sum(len(m.tool_results) for m in request.messages[asked:])
        if request.tool_choice == "none":
            return says(f"{worked} done", usage=USED)
        if worked >= WANTED:
            return says(f"all done for {texts[-1][-5:]}", usage=USED)
        return Line(text=f"after {worked}", calls=calls("work", n=worked).calls, usage=USED)

    def agent(self, **settings: Any) -> Agent:
        """Return the agent."""

        @tool(effect="write")
        async def work(context: ToolContext, n: int) -> str:
            """Work."""
            self.keys.append(context.idempotency_key)
            return f"worked {n}"

        return Agent(name="desk", model="scripted:x", tools=[work], **settings)

    @property
    def models(self) -> dict[str, ScriptedModel]:
        return {"scripted": ScriptedModel(self.script)}


async def test_last_turn_goes_on(serve: Serve) -> None:
    """A turn that a limit has ended goes on without a word of the person's, and does nothing again."""
    desk = Desk()
    agent = desk.agent(limits=Limits(steps=3))
    async with serve(agent, models=desk.models) as client, asyncio.timeout(HANGS):
        session = await client.session("goes-on", agent="desk")
        await session.say("hello")
        first = await session.say("task1")
        assert (first.stop_reason, first.turn) == ("max_steps", 2)
        with pytest.raises(InvalidRequest, match="raise steps to 4 or more"):
            await session.extend(limits=Limits(steps=3))
        with pytest.raises(InvalidRequest, match="steps=2 is less than"):
            await session.extend(limits=Limits(steps=2))
        with pytest.raises(InvalidRequest, match="raise steps to 4 or more"):
            await session.extend(limits=Limits())
        more = Limits(steps=20)
        second = await session.extend(limits=more, by="ann", reason="finish it", id="once")
        assert (second.stop_reason, second.text, second.turn) == ("end_turn", "all done for task1", 2)
        assert (second.steps, second.tool_calls) == (2, 1)
        assert len(set(desk.keys)) == len(desk.keys) == WANTED
        assert await session.extend(limits=more, by="ann", reason="finish it", id="once") == second
        notes = [m.text for m in await session.transcript() if "ann has granted more" in m.text]
        assert len(notes) == 1
        made = (await session.status()).extensions
        assert [(x.by, x.reason, x.ended) for x in made] == [("ann", "finish it", "max_steps")]
        with pytest.raises(InvalidRequest, match="has ended with 'end_turn', and not by a limit"):
            await session.extend(limits=more)
        third = await session.say("task2")
        assert (third.stop_reason, third.steps, third.turn) == ("max_steps", 3, 3)
        await session.close()
        await session.run.result()
        with pytest.raises(RunEnded):
            await session.extend(limits=more)


async def test_turn_goes_on_twice(serve: Serve) -> None:
    """Totals count from the first start of a turn, however often it goes on; a turn under way is not extended."""
    desk = Desk()
    agent = desk.agent(limits=Limits(steps=2))
    async with serve(agent, models=desk.models) as client, asyncio.timeout(HANGS):
        session = await client.session("twice", agent="desk")
        await session.say("task1")
        assert (await session.extend(limits=Limits(steps=3))).stop_reason == "max_steps"
        with pytest.raises(InvalidRequest, match="raise steps to 4 or more"):
            await session.extend(limits=Limits(steps=3))
        desk.gate = Gate()
        going = asyncio.create_task(session.extend(limits=Limits(steps=9)))
        await desk.gate.reached.wait()
        with pytest.raises(InvalidRequest, match="a turn is under way"):
            await session.extend(limits=Limits(steps=30))
        queued = asyncio.create_task(session.say("hello"))
        desk.gate.opened.set()
        assert (await going).text == "all done for task1"
        assert (await queued).text == "hello"
    assert len(set(desk.keys)) == len(desk.keys) == WANTED


async def test_turn_of_team_goes_on(serve: Serve) -> None:
    """An agent that a swarm's limit has cut short in a turn goes on from its own transcript."""
    desk = Desk()
    swarm = Swarm(name="team", agents=[desk.agent()], limits=SwarmLimits(cost_usd=0.012))
    async with serve(swarm, models=desk.models) as client, asyncio.timeout(HANGS):
        session = await client.session("team-goes-on", agent="team")
        await session.say("hello")
        first = await session.say("task1")
        assert first.stop_reason == "cost_budget"
        second = await session.extend(limits=SwarmLimits(cost_usd=1), by="ann")
        assert (second.stop_reason, second.text) == ("end_turn", "all done for task1")
        assert len(set(desk.keys)) == len(desk.keys) == WANTED
        status = await session.status()
        assert status.usage.input_tokens == 1000 * len(desk.asked)
        third = await session.say("task2")
        assert third.stop_reason == "cost_budget"


async def test_closed_session_is_open_again(serve: Serve) -> None:
    """A session that its own limits have closed is extended like a run, and knows what was said."""
    desk = Desk()
    async with serve(desk.agent(), models=desk.models) as client, asyncio.timeout(HANGS):
        session = await client.session("closed-extended", agent="desk", session_limits=Limits(steps=3))
        reply = await session.say("task1", id="first")
        assert reply.stop_reason == "max_steps"
        assert (await session.run.result()).stop_reason == "max_steps"
        with pytest.raises(InvalidRequest, match="raise steps to 4 or more"):
            await session.run.extend(limits=Limits(steps=3))
        await session.run.extend(limits=Limits(steps=40, timeout=None), by="ann")
        again = await client.session("closed-extended")
        assert await again.say("task1", id="first") == reply
        second = await again.extend(limits=Limits(steps=60))
        assert second.text == "all done for task1"
        assert (await again.say("hello")).text == "hello"
        assert len(set(desk.keys)) == len(desk.keys) == WANTED
        idle = await client.session("idle-extended", agent="desk", max_idle=timedelta(milliseconds=300))
        await idle.say("hello")
        await idle.run.result()
        with pytest.raises(InvalidRequest, match="open the session anew"):
            await idle.run.extend(limits=Limits(steps=40))


async def test_turn_cut_by_session_goes_on_at_once(serve: Serve) -> None:
    """A turn that the session's own limit has cut goes on by any grant, in the line after the session's extension."""
    desk = Desk()
    async with serve(desk.agent(), models=desk.models) as client, asyncio.timeout(HANGS):
        grants: dict[str, Limits] = {
            "the same bound": Limits(total_tokens=50_000),
            "another bound": Limits(steps=60),
            "nothing": Limits(),
        }
        for row, granted in grants.items():
            desk.keys.clear()
            session = await client.session(row, agent="desk", session_limits=Limits(total_tokens=3500))
            assert (await session.say("task1")).stop_reason == "token_budget"
            await session.run.result()
            await session.run.extend(limits=Limits(total_tokens=90_000), by="ann")
            reply = await session.extend(limits=granted, by="ann")
            assert (reply.text, reply.turn) == ("all done for task1", 1), row
            assert len(set(desk.keys)) == len(desk.keys) == WANTED, row
            assert (await session.say("hello")).text == "hello"


async def test_updates_wait_for_extended_session(serve: Serve) -> None:
    """Whatever is asked of a session in the moment after its extension waits for its state."""
    desk = Desk()
    async with serve(desk.agent(), models=desk.models) as client, asyncio.timeout(HANGS):
        session = await client.session("asked-at-once", agent="desk", session_limits=Limits(steps=3))
        first = await session.say("task1", id="first")
        await session.run.result()
        await session.run.extend(limits=Limits(steps=40))
        changed, again, more = await asyncio.gather(
            session.upgrade(), session.say("task1", id="first"), session.extend(limits=Limits(steps=60))
        )
        assert (changed.changed, again) == (False, first)
        assert more.text == "all done for task1"


async def test_identical_calls_of_session_bound_turns(serve: Serve) -> None:
    """A session's bound of identical calls is one of each turn: a turn can be given more, and counts on."""
    made: list[str] = []

    @tool
    async def look() -> str:
        """Look."""
        made.append("look")
        return "not yet"

    def script(request: ModelRequest) -> Line:
        return says("seen") if len(made) >= 3 or request.tool_choice == "none" else calls("look")

    watcher = Agent(name="watcher", model="scripted:x", tools=[look])
    models = {"scripted": ScriptedModel(script)}
    async with serve(watcher, models=models) as client, asyncio.timeout(HANGS):
        bounds = Limits(identical_calls=2, per_tool={"look": 4})
        session = await client.session("looks", agent="watcher", session_limits=bounds)
        assert (await session.say("Look.")).stop_reason == "max_tool_calls"
        with pytest.raises(InvalidRequest, match="raise identical_calls to 3 or more"):
            await session.extend(limits=Limits(steps=90))
        assert (await session.extend(limits=Limits(identical_calls=3))).text == "seen"
        made.clear()
        assert (await session.say("Look again.")).stop_reason == "max_tool_calls"
        with pytest.raises(InvalidRequest, match=r"session's own limit per_tool\.look=4 is used up"):
            await session.extend(limits=Limits(per_tool={"look": 9}))
