"""Upgrades of open sessions: another version of the agent between two turns, and nothing else changes."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from perdure import Agent, Graph, InvalidRequest, Limits, Swarm, tool
from perdure.limits import SwarmLimits
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.events import AgentChanged
from tests.conftest import HANGS, Gate, Serve, check_rows


class Price(BaseModel):
    """Output of a later version."""

    price: int
    currency: str


@tool
async def look_up(name: str) -> str:
    """Look it up."""
    return f"{name} costs 5"


@tool
async def refund(amount: int) -> str:
    """Refund it."""
    return "refunded"


OLD = Agent(name="seller", model="scripted:x", instructions="old", tools=[refund])
NEW = replace(OLD, instructions="new", tools=[refund, look_up], output_type=Price)


class Seller:
    """Says by which instructions it was asked; gives an output where it is asked for one."""

    def __init__(self) -> None:
        self.asked: list[ModelRequest] = []
        self.gate = Gate()

    async def __call__(self, request: ModelRequest) -> Line:
        self.asked.append(request)
        if request.messages[-1].text == "wait":
            await self.gate.wait()
        names = {shown.name for shown in request.tools}
        if "final_answer" not in names:
            return says(f"{request.instructions} knows {sorted(names)}")
        if "look_up" in names and request.messages[-1].role == "user":
            return calls("look_up", name="it")
        return calls("final_answer", price=5, currency="EUR")

    @property
    def models(self) -> dict[str, ScriptedModel]:
        return {"scripted": ScriptedModel(self)}


async def test_session_takes_new_version(serve: Serve) -> None:
    """A deploy changes nothing for an open session; an upgrade does, with its transcript, and is recorded."""
    seller = Seller()
    async with asyncio.timeout(HANGS):
        async with serve(OLD, models=seller.models) as client:
            session = await client.session("upgraded", agent="seller")
            first = await session.say("what is it?")
            before = (await session.status()).spec_hash
        async with serve(NEW, models=seller.models) as client:
            session = await client.session("upgraded")
            second = await session.say("and now?")
            assert "old knows" in second.text == first.text
            answer = await session.upgrade(by="ann", reason="euros")
            assert (answer.changed, answer.after_turn, answer.before) == (True, False, before)
            again = await session.upgrade(by="ann")
            assert (again.changed, again.after) == (False, answer.after)
            events = [event async for event in session.stream("how much?", id="third")]
            assert not any(isinstance(event, AgentChanged) for event in events), "it was before the turn"
            third = await session.say("how much?", id="third")
            assert third.output == {"price": 5, "currency": "EUR"}
            status = await session.status()
            assert (status.spec_hash, status.next_spec_hash) == (answer.after, "")
            made = [(x.by, x.reason, x.before, x.after, x.turn) for x in status.upgrades]
            assert made == [("ann", "euros", before, answer.after, 2)]
            assert (await session.transcript())[0].text == "what is it?"
            assert [m.text for m in seller.asked[-1].messages][:2] == ["what is it?", first.text]


async def test_turn_ends_with_its_version(serve: Serve) -> None:
    """An upgrade during a turn waits for its end; messages that wait get the new version."""
    seller = Seller()
    async with asyncio.timeout(HANGS):
        async with serve(OLD, models=seller.models) as client:
            session = await client.session("busy", agent="seller")
            await session.say("hello")
        async with serve(NEW, models=seller.models) as client:
            session = await client.session("busy")
            waiting = asyncio.create_task(session.say("wait"))
            await seller.gate.reached.wait()
            known = session.stream("next", id="next")
            queued = asyncio.create_task(anext(e async for e in known if isinstance(e, AgentChanged)))
            answer = await session.upgrade(by="ann")
            assert answer.after_turn
            status = await session.status()
            assert (status.spec_hash, status.next_spec_hash) == (answer.before, answer.after)
            seller.gate.opened.set()
            assert "old knows" in (await waiting).text
            assert (await queued).upgrade.by == "ann"
            assert (await session.say("next", id="next")).output == {"price": 5, "currency": "EUR"}


async def test_each_turn_takes_the_newest(serve: Serve) -> None:
    """A session that was opened so has the newest version in each turn; one that is not served holds nothing up."""
    seller = Seller()
    other = Agent(name="other", model="scripted:x")
    async with asyncio.timeout(HANGS):
        async with serve(OLD, models=seller.models) as client:
            session = await client.session("newest", agent="seller", upgrade="each_turn")
            assert "old knows" in (await session.say("hello")).text
            assert "old knows" in (await session.say("again")).text
            assert (await session.status()).upgrades == []
        async with serve(NEW, other, models=seller.models) as client:
            session = await client.session("newest")
            assert (await session.say("how much?")).output == {"price": 5, "currency": "EUR"}
            assert len((await session.status()).upgrades) == 1


REFUSED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    # The version that is served, the request of the session, the upgrade, and the words.
    "gone": (Agent(name="other", model="scripted:x"), {}, {}, "no worker serves 'seller' on queue"),
    "kind": (Swarm(name="seller", agents=[replace(OLD, name="a")]), {}, {}, "is a swarm by now"),
    "version": (NEW, {}, {"agent_version": "abc"}, "have version .* not 'abc'"),
    "price": (
        replace(NEW, model="other:unpriced"),
        {"session_limits": Limits(cost_usd=1)},
        {},
        "price",
    ),
    "tool": (
        replace(NEW, tools=[look_up]),
        {"limits": Limits(per_tool={"refund": 1})},
        {},
        "per_tool names 'refund', which is no tool here",
    ),
    "words": (NEW, {}, {"by": "x" * 201}, "upgrade: by: String should have at most 200"),
}


async def test_upgrade_refuses_in_words(serve: Serve) -> None:
    """A version that does not fit the session is refused, and the session goes on with the one that it has."""
    seller = Seller()
    models = {**seller.models, "other": ScriptedModel(seller)}

    async def play(row: str) -> None:
        served, request, how, words = REFUSED[row]
        name = f"refused-{row}"
        async with serve(OLD, models=models, task_queue=name) as client:
            session = await client.session(name, agent="seller", **request)
            await session.say("hello")
        async with serve(served, models=models, task_queue=name) as client:
            session = await client.session(name)
            with pytest.raises(InvalidRequest, match=words):
                await session.upgrade(**how)
            status = await session.status()
            assert (status.upgrades, status.next_spec_hash, status.status) == ([], "", "idle")

    async with asyncio.timeout(HANGS):
        await check_rows({row: play(row) for row in REFUSED})


async def test_graph_session_takes_other_nodes(serve: Serve) -> None:
    """A session with a graph takes one with other nodes: what its last turn knew of nodes is forgotten."""
    seller = Seller()
    a, b = replace(OLD, name="a"), replace(OLD, name="b", instructions="new")
    old = Graph(name="desk", nodes={"first": a}, entry="first")
    new = Graph(name="desk", nodes={"second": b}, entry="second")
    async with asyncio.timeout(HANGS):
        async with serve(old, models=seller.models) as client:
            session = await client.session("graph", agent="desk")
            assert "old knows" in (await session.say("hello")).text
        async with serve(new, models=seller.models) as client:
            session = await client.session("graph")
            assert (await session.upgrade()).changed
            assert (await session.status()).turn == 1
            assert "new knows" in (await session.say("again")).text
            assert [node.node for node in (await session.status()).nodes] == ["second"]


async def test_team_session_takes_new_version(serve: Serve) -> None:
    """A session with a swarm takes another swarm: its agents, its limits, its scheduler."""
    seller = Seller()
    old = Swarm(name="desk", agents=[replace(OLD, name="a")], limits=SwarmLimits(max_iterations=3))
    new = Swarm(name="desk", agents=[replace(OLD, name="b", instructions="new")])
    async with asyncio.timeout(HANGS):
        async with serve(old, models=seller.models) as client:
            session = await client.session("team", agent="desk")
            assert "old knows" in (await session.say("hello")).text
        async with serve(new, models=seller.models) as client:
            session = await client.session("team")
            assert (await session.upgrade()).changed
            assert "new knows" in (await session.say("again")).text
            status = await session.status()
            assert [node.node for node in status.nodes] == ["b"]
            assert "hello" in seller.asked[-1].messages[0].text
