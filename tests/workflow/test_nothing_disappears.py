"""Nothing disappears on a real server: messages and calls at handoffs, in sub-agents, in graphs and in sessions."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from perdure import Agent, Graph, InvalidRequest, Limits, Node, RunFailed, RunNotFound, Session, Swarm, tool
from perdure.model import ModelRequest
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.testing import fails as breaks
from perdure.wire.events import ToolFinished, ToolStarted
from tests.conftest import Serve, until_queried

LONG = "".join(f"line {number:05}\n" for number in range(3000))


@tool
async def read_meter(site: str) -> str:
    """Read a meter."""
    return LONG if site == "long" else f"{site}: 4711 kWh"


@tool(approval=True, effect="write")
async def credit(cents: int) -> str:
    """Credit an account."""
    return f"credited {cents}"


class Receipt(BaseModel):
    paid: bool


def agent(name: str, **changed: Any) -> Agent:
    settings: dict[str, Any] = {
        "model": f"scripted:{name}",
        "description": "Works.",
        "tools": [read_meter, credit],
    }
    return Agent(name=name, **{**settings, **changed})


def to(name: str) -> Any:
    return calls("handoff_to_agent", agent_name=name, message="Go on.")


class Cast:
    """Plays each agent by its part; remembers what each has read."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        self.read: dict[str, list[str]] = {name: [] for name in parts}
        self.tools: dict[str, set[str]] = {name: set() for name in parts}

    def __call__(self, request: ModelRequest) -> Any:
        name = request.config.model
        self.read[name] = [message.text for message in request.messages]
        self.tools[name] = {offered.name for offered in request.tools}
        part = self.parts[name]
        return part(request) if callable(part) else part[request.step - 1]

    @property
    def models(self) -> dict[str, ScriptedModel]:
        return {"scripted": ScriptedModel(self, chunk=65_536)}

    def has_read(self, name: str, words: str) -> bool:
        return any(words in text for text in self.read[name])


async def waiting(run: Run | Session) -> Any:
    """What waits for a person, once it is there."""
    found: list[Any] = []

    async def is_there() -> bool:
        with suppress(RunNotFound, InvalidRequest):
            found[:] = (await run.status()).waiting
        return bool(found)

    await until_queried(is_there)
    return found[0]


def shown(line: str) -> str:
    """The line without the time since when a call has waited."""
    return line.partition(" (stopped)")[0]


# -- handoffs


async def test_message_travels_with_handoff(serve: Serve) -> None:
    """A message that nobody read before a handoff is the next agent's, as a message of its own after the prompt."""
    cast = Cast(a=[[credit_call(), to("b")]], b=[says("done")])
    async with serve(Swarm(name="desk", agents=[agent("a"), agent("b")]), models=cast.models) as client:
        run = await client.start("desk", "Case 9.")
        approval = await waiting(run)
        await run.send("STOP: do not close it.")
        await run.decide(approval.call_id, allow=True)
        result = await run.result()
    assert (result.output, result.missing) == ("done", [])
    assert cast.read["b"][-1] == "STOP: do not close it."


def credit_call() -> Any:
    return calls("credit", cents=500)


async def test_message_before_a_stop_is_named(serve: Serve) -> None:
    """Where the handoff does not happen any more, the swarm's result names the message and the calls."""
    cast = Cast(a=[[credit_call(), to("b")]], b=[says("done")])
    async with serve(Swarm(name="desk", agents=[agent("a"), agent("b")]), models=cast.models) as client:
        run = await client.start("desk", "Case 9.")
        await waiting(run)
        await run.send("STOP: do not close it.")
        await run.stop()
        result = await run.result()
    assert result.stop_reason == "stopped"
    assert sorted(shown(line.partition(":")[2]) for line in result.missing) == [
        " credit(cents=500): not run: the run was ended",
        ' handoff_to_agent(agent_name="b", message="Go on."): not handed over: the run was ended',
        " message not read: STOP: do not close it.",
    ]


async def test_long_result_beside_handoff_is_read_on(serve: Serve) -> None:
    """Results beside a handoff are shown within the bound of one result; the next agent reads on in the whole."""
    found: list[str] = []

    def b(request: ModelRequest) -> Any:
        if request.step == 1:
            assert "north: 4711 kWh" in request.messages[-1].text
            name = request.messages[-1].text.split('read_result(result="')[-1].partition('"')[0]
            return calls("read_result", result=name, offset=len(LONG) - 11)
        found.append(request.messages[-1].text)
        return says("billed")

    beside = [calls("read_meter", site="long"), calls("read_meter", site="north"), to("b")]
    cast = Cast(a=[beside], b=b)
    async with serve(Swarm(name="desk", agents=[agent("a"), agent("b")]), models=cast.models) as client:
        result = await client.run("desk", "Bill it.")
    assert (result.output, result.missing) == ("billed", [])
    assert "read_result" in cast.tools["b"]
    assert "line 02999" in found[0]


async def test_refusal_is_told_to_later_agents(serve: Serve) -> None:
    """A call that a person has refused is told to the agent that takes over, and to those after it."""
    cast = Cast(a=[credit_call(), to("b")], b=[to("c")], c=[says("closed")])
    desk = Swarm(name="desk", agents=[agent("a"), agent("b"), agent("c")])
    async with serve(desk, models=cast.models) as client:
        run = await client.start("desk", "Case 9.")
        approval = await waiting(run)
        await run.decide(approval.call_id, allow=False, by="lee", reason="too much")
        result = await run.result()
    assert result.missing == []
    for name in ("b", "c"):
        assert cast.has_read(
            name, "Refused by a person:\n• credit(cents=500): This call was refused by lee: too much"
        )


async def test_handoff_beside_an_answer_is_refused(serve: Serve) -> None:
    """A final answer beside a handoff says two things: the agent is asked which of them it means."""
    answer = calls("final_answer", paid=True)
    cast = Cast(a=[[answer, to("b")], answer], b=[says("never")])
    desk = Swarm(name="desk", agents=[agent("a", output_type=Receipt), agent("b")])
    async with serve(desk, models=cast.models) as client:
        result = await client.run("desk", "Pay.")
    assert (result.output, result.missing) == ({"paid": True}, [])
    assert cast.has_read("a", "decide which of the two")


# -- sub-agents


def _ask_worker(task: str, request: ModelRequest) -> Any:
    """Call the sub-agent, then say what came back."""
    return calls("worker", input=task) if request.step == 1 else says(request.messages[-1].text)


async def test_sub_agent_without_words_is_not_done(serve: Serve) -> None:
    """A sub-agent that says nothing fails in words, with its last results; it is never `done`."""
    cast = Cast(
        boss=None,
        worker=[calls("read_meter", site="north"), says(""), says("")],
    )
    cast.parts["boss"] = partial(_ask_worker, "read it")
    async with serve(agent("boss", tools=[agent("worker").as_tool()]), models=cast.models) as client:
        result = await client.run("boss", "go")
    assert result.output.startswith(
        "worker failed: malformed_reply: the model said nothing, twice; its last results: read_meter: north: 4711 kWh"
    )


async def test_sub_agents_leftovers_reach_the_model(serve: Serve) -> None:
    """A message that a sub-agent has not read stands beside its answer, for the agent that called it."""
    worker = agent("worker", limits=Limits(steps=1))
    cast = Cast(worker=[[says("half of it"), credit_call()]], boss=None)
    cast.parts["boss"] = partial(_ask_worker, "do it")
    async with serve(agent("boss", tools=[worker.as_tool()]), models=cast.models) as client:
        run = await client.start("boss", "go")
        approval = await waiting(run)
        await run.send("STOP", run_id=approval.run_id)
        await run.decide(approval, allow=True)
        result = await run.result()
    assert result.output == (
        "[it left undone: message not read: STOP]\nhalf of it\n[it ended early: max_steps]"
    )
    assert result.missing == []


async def test_stop_names_what_a_sub_agent_left(serve: Serve) -> None:
    """What a sub-agent has left undone is named by a run that ends before its model has seen it."""
    worker = agent("worker")
    cast = Cast(worker=[credit_call()], boss=[calls("worker", input="do it")])
    async with serve(agent("boss", tools=[worker.as_tool()]), models=cast.models) as client:
        run = await client.start("boss", "go")
        approval = await waiting(run)
        await run.send("STOP", run_id=approval.run_id)
        await run.stop()
        result = await run.result()
    assert any(line.endswith("message not read: STOP") for line in result.missing), result.missing
    assert any("credit(cents=500): not run" in line for line in result.missing), result.missing


# -- graphs


@pytest.mark.parametrize("fails", [True, False])
async def test_message_to_a_node_is_not_lost(serve: Serve, fails: bool) -> None:
    """A message that a node's run did not read is its next attempt's; without one, the graph's result names it."""
    tries: list[int] = []

    def work(request: ModelRequest) -> Any:
        tries.append(request.step)
        if tries == [1]:
            return [says("half of it"), credit_call()]
        if tries == [1, 2]:
            return breaks("payment", "no money")
        return says(" / ".join(message.text for message in request.messages))

    limits = Limits() if fails else Limits(steps=1)  # an end by a limit is no failure: nothing is tried again
    node = Node(agent("work", limits=limits, on_failure="fail"), retries=1)
    graph = Graph(name="graph", nodes={"work": node}, edges=[], entry="work")
    cast = Cast(work=work)
    async with serve(graph, models=cast.models) as client:
        run = await client.start("graph", "the task")
        approval = await waiting(run)
        await run.send("STOP", run_id=approval.run_id)
        await run.decide(approval, allow=True)
        result = await run.result()
    unread = [] if fails else ["work-1: message not read: STOP"]
    output = "the task / STOP" if fails else "half of it"
    assert (result.output, result.missing) == (output, unread)


# -- sessions


def _pay_or_repeat(request: ModelRequest) -> Any:
    newest = request.messages[-1].text
    return credit_call() if newest == "pay" else says(f"heard {newest}")


async def test_message_below_is_the_next_turns(serve: Serve) -> None:
    """A message to an agent of a team that its turn did not read begins the next turn of the session."""
    cast = Cast(a=None)
    cast.parts["a"] = _pay_or_repeat
    async with serve(Swarm(name="desk", agents=[agent("a")]), models=cast.models) as client:
        session = await client.session("s-left", agent="desk")
        turn = asyncio.create_task(session.say("pay"))
        approval = await waiting(session)
        await client.get(session.id).send("STOP", run_id=approval.run_id)
        await session.interrupt()
        interrupted = await turn
        reply = await session.say("and now?")
        texts = [message.text for message in await session.transcript()]
        await session.close()
    assert [shown(line.partition(": ")[2]) for line in interrupted.missing] == [
        "credit(cents=500): not run: the run was ended"
    ]
    assert reply.turn == 3
    assert texts[1:] == ["STOP", "heard STOP", "and now?", "heard and now?"]


async def test_turn_names_what_it_left(serve: Serve) -> None:
    """The reply of a turn names the calls that it has left undone."""
    cast = Cast(a=[credit_call()])
    async with serve(agent("a"), models=cast.models) as client:
        session = await client.session("s-turn", agent="a")
        turn = asyncio.create_task(session.say("pay"))
        await waiting(session)
        await session.interrupt()
        reply = await turn
        await session.close()
    assert [shown(line) for line in reply.missing] == ["credit(cents=500): not run: the run was ended"]


@pytest.mark.parametrize("ends", [True, False])
async def test_silence_is_no_success(serve: Serve, ends: bool) -> None:
    """A run whose model says nothing, twice, fails; one that answers when it is asked once more is done."""
    cast = Cast(a=[says("", thinking="hm"), says("" if ends else "here")])
    async with serve(agent("a"), models=cast.models) as client:
        if not ends:
            assert (await client.run("a", "go")).output == "here"
            return
        with pytest.raises(RunFailed, match="said nothing, twice"):
            await client.run("a", "go")


async def test_events_start_only_what_ran(serve: Serve) -> None:
    """A call that was wrong, refused or not accepted has no start among the events, and its end says so."""
    answer = calls("final_answer", paid=True)
    cast = Cast(a=[[calls("nobody"), credit_call(), calls("read_meter", site="north"), answer], answer])
    async with serve(agent("a", output_type=Receipt), models=cast.models) as client:
        run = await client.start("a", "go")
        approval = await waiting(run)
        await run.decide(approval, allow=False)
        events = [event async for event in run.events()]
    assert [event.tool for event in events if isinstance(event, ToolStarted)] == [
        "read_meter",
        "final_answer",
    ]
    ended = [(event.tool, event.not_run) for event in events if isinstance(event, ToolFinished)]
    assert sorted(ended) == [
        ("credit", True),
        ("final_answer", False),
        ("final_answer", True),
        ("nobody", True),
        ("read_meter", False),
    ]
