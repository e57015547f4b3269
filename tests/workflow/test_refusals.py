"""Refused calls: a limit of a tool and identical calls go back to the model in words, and the run goes on."""

from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from perdure import Agent, Edge, Graph, GraphLimits, Limits, Swarm, SwarmLimits, tool
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, fails, says
from tests.conftest import Serve

RAN: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@tool
async def search(query: str) -> str:
    """Search."""
    RAN["search"] += 1
    return f"found {query}"


@tool(effect="write")
async def book(flight: str) -> str:
    """Book a flight."""
    RAN["book"] += 1
    return "booked"


@tool(polls=True)
async def look(job: str) -> str:
    """Look how far a job is."""
    RAN["look"] += 1
    return "not yet"


def results_of(request: ModelRequest) -> list[str]:
    return [result.text for message in request.messages for result in message.tool_results]


def searches_then_books(request: ModelRequest) -> Any:
    """Search three times, then book twice, then say so; give up when nothing may be called."""
    if request.tool_choice == "none":
        return says("I may do no more.")
    done = len(results_of(request))
    if done < 3:
        return calls("search", query=f"query {done}")
    return calls("book", flight=f"flight {done}") if done < 5 else says("Done.")


def agent(name: str = "a", **settings: Any) -> Agent:
    settings.setdefault("tools", [search, book, look])
    return Agent(name=name, model="scripted:x", **settings)


def scripted(script: Any) -> dict[str, Any]:
    return {"models": {"scripted": ScriptedModel(script)}}


async def test_refused_tool_does_not_end_run(serve: Serve) -> None:
    """A call beyond a tool's bound gets its reason, other tools go on, and a write that was refused is named."""
    limits = Limits(per_tool={"search": 2, "book": 1})
    async with serve(
        agent(limits=limits), agent("b", limits=Limits(per_tool={"book": 0})), **scripted(searches_then_books)
    ) as client:
        run = await client.start("a", "go")
        result = await run.result()
        told = [result.text for message in await run.transcript() for result in message.tool_results]
        none = await client.run("b", "go")
    assert (result.stop_reason, result.output, result.tool_calls) == ("end_turn", "Done.", 3)
    assert told[2] == (
        "not run: limit of 2 calls of 'search' reached; it will not be run again in this run: go on without it"
    )
    refused = (
        "not run: limit of 1 call of 'book' reached; it will not be run again in this run: go on without it"
    )
    assert result.missing == [f'book(flight="flight 4"): {refused}']
    assert result.refused_calls == {"search": 1, "book": 1}
    assert (none.stop_reason, len(none.missing), none.refused_calls) == ("end_turn", 2, {"book": 2})
    assert RAN == {"search": 5, "book": 1}


async def test_tool_limit_may_end_run(serve: Serve) -> None:
    """With `per_tool_ends` the model has one last call, and the run ends by the limit."""
    limits = Limits(per_tool={"search": 2}, per_tool_ends=True)
    async with serve(agent(limits=limits), **scripted(searches_then_books)) as client:
        result = await client.run("a", "go")
    assert (result.stop_reason, result.output) == ("max_tool_calls", "I may do no more.")


async def test_model_that_insists_has_last_word(serve: Serve) -> None:
    """A model that asks for nothing but refused calls, five steps in a row, gets its last call."""

    def insists(request: ModelRequest) -> Any:
        return says("I give up.") if request.tool_choice == "none" else calls("search", query="x")

    async with serve(agent(limits=Limits(per_tool={"search": 1})), **scripted(insists)) as client:
        result = await client.run("a", "go")
    assert (result.stop_reason, result.output, result.steps) == ("max_tool_calls", "I give up.", 7)
    assert RAN == {"search": 1}


def _one_search_each(request: ModelRequest) -> Any:
    if request.tool_choice == "none":
        return says("I may do no more.")
    names = {tool.name for tool in request.tools}
    done = len(results_of(request))
    if "searcher" in names:
        return [calls("searcher", input=f"n {n}") for n in range(3)] if done == 0 else says("Done.")
    if "handoff_to_agent" in names and done == 2:
        other = "two" if "Agent name: two" in request.messages[0].text else "three"
        return calls("handoff_to_agent", agent_name=other, message="go on")
    return calls("search", query=f"{done}") if done < 2 else says("Done.")


def trees() -> dict[str, Any]:
    bound: dict[str, Any] = {"per_tool": {"search": 3}}
    one, two, three = (agent(name) for name in ("one", "two", "three"))
    searcher = agent("searcher").as_tool(description="Search.")
    nodes: dict[str, Any] = {"one": one, "two": two, "three": three}
    edges = [("one", "two"), ("two", "three")]
    return {
        "agents": agent("agents", tools=[searcher, search], limits=Limits(**bound)),
        "graph": Graph(name="graph", nodes=nodes, entry=list(nodes), limits=GraphLimits(**bound)),
        "chain": Graph(
            name="chain",
            nodes=nodes,
            edges=edges,
            entry="one",
            limits=GraphLimits(**bound),
        ),
        "swarm": Swarm(name="swarm", agents=[one, two, three], limits=SwarmLimits(max_handoffs=2, **bound)),
    }


async def test_tool_limit_holds_in_tree(serve: Serve) -> None:
    """Sub-agents, nodes and agents of a swarm share the bound; whoever comes too late goes on without the tool."""
    async with serve(*trees().values(), **scripted(_one_search_each)) as client:
        for name in trees():
            RAN.clear()
            result = await client.run(name, "go")
            assert (name, result.stop_reason, RAN["search"]) == (name, "end_turn", 3)
            assert {node.stop_reason for node in result.nodes} <= {"end_turn", "handoff"}
            assert result.per_tool == {"search": 3}


async def test_tool_limit_of_team_may_end_its_runs(serve: Serve) -> None:
    """The choice goes down the tree with the bound."""
    limits = GraphLimits(per_tool={"search": 3}, per_tool_ends=True)
    nodes: dict[str, Any] = {name: agent(name) for name in ("one", "two", "three")}
    edges: list[Edge | tuple[str, str]] = [("one", "two"), ("two", "three")]
    team = Graph(name="team", nodes=nodes, edges=edges, entry="one", limits=limits)
    async with serve(team, **scripted(_one_search_each)) as client:
        result = await client.run("team", "go")
    assert result.stop_reason == "max_tool_calls"
    assert [node.stop_reason for node in result.nodes] == ["end_turn", "max_tool_calls", "max_tool_calls"]
    assert RAN == {"search": 3}


async def test_identical_calls_are_bounded(serve: Serve) -> None:
    """The same call is refused after so many times, whatever lies between; other arguments, and polls, are not."""

    def loops(request: ModelRequest) -> Any:
        done = len(results_of(request))
        if request.tool_choice == "none" or done >= 12:
            return says(str(done))
        kinds = (calls("search", query="x"), calls("look", job="1"), calls("search", query=f"other {done}"))
        return kinds[done % 3]

    async with serve(agent(limits=Limits(identical_calls=2)), **scripted(loops)) as client:
        run = await client.start("a", "go")
        result = await run.result()
        told = [result.text for message in await run.transcript() for result in message.tool_results]
        session = await client.session("loops", agent="a")
        turns = [await session.say("go"), await session.say("go")]
    assert (result.stop_reason, result.output, result.refused_calls) == ("end_turn", "12", {"search": 2})
    assert (
        told[6]
        == told[9]
        == (
            "not run: limit of 2 identical calls reached: 'search' was called 2 times with these arguments; "
            "go on with the results that you have, or call it with other arguments"
        )
    )
    assert [text for text in told if text == "not yet"] == ["not yet"] * 4
    assert turns[0].tool_calls == 10, "each turn counts anew"


async def test_identical_calls_of_team_bound_each_run(serve: Serve) -> None:
    """A team's bound holds for each run below, beside the agent's own."""

    def loops(request: ModelRequest) -> Any:
        return says("stuck") if request.tool_choice == "none" else calls("search", query="x")

    team = Graph(name="team", nodes={"one": agent("one")}, entry="one", limits=GraphLimits(identical_calls=3))
    async with serve(team, **scripted(loops)) as client:
        result = await client.run("team", "go")
    assert (result.output, RAN["search"]) == ("stuck", 3)
    assert result.nodes[0].stop_reason == "max_tool_calls"


class Verdict(BaseModel):
    fine: bool


def _judge(request: ModelRequest) -> Any:
    """Call whatever is offered first; at the last call do what the task says."""
    offered = [tool.name for tool in request.tools]
    if request.tool_choice == "auto" and offered != ["final_answer"]:
        return calls("search", query=str(request.step))
    assert offered == ["final_answer"]
    assert "final_answer" in request.instructions
    match request.messages[0].text:
        case "call":
            return calls("final_answer", fine=True)
        case "words":
            return says('{"fine": true}')
        case "unforced":
            return (
                fails("bad_request")
                if request.tool_choice == "required"
                else calls("final_answer", fine=True)
            )
        case "unfit":
            return calls("final_answer", fine="perhaps")
        case _:
            return says("It is fine.")


async def test_last_word_has_output_type(serve: Serve) -> None:
    """The last call of a typed agent offers the final answer alone, and its output is the run's."""
    judge = agent("judge", output_type=Verdict, limits=Limits(tool_calls=2))
    async with serve(judge, **scripted(_judge)) as client:
        for task in ("call", "words", "unforced"):
            result = await client.run("judge", task)
            assert (task, result.stop_reason, result.output) == (task, "max_tool_calls", {"fine": True})
        for task in ("unfit", "talk"):
            result = await client.run("judge", task)
            assert (task, result.stop_reason, result.output) == (task, "max_tool_calls", None)


async def test_last_word_of_typed_swarm_agent(serve: Serve) -> None:
    """An agent that may not hand over any more answers in its type."""

    def script(request: ModelRequest) -> Any:
        if request.tool_choice == "required":
            return calls("final_answer", fine=False)
        return calls(
            "handoff_to_agent",
            agent_name="b" if "Agent name: b" in request.messages[0].text else "a",
            message="you",
        )

    pair = [agent(name, output_type=Verdict, tools=[]) for name in "ab"]
    async with serve(
        Swarm(name="s", agents=pair, limits=SwarmLimits(max_handoffs=1)), **scripted(script)
    ) as client:
        result = await client.run("s", "go")
    assert (result.stop_reason, result.output) == ("max_handoffs", {"fine": False})


@pytest.mark.parametrize("beside", [False, True], ids=["before the handoff", "beside it"])
async def test_refused_write_is_named_after_handoff(serve: Serve, beside: bool) -> None:
    """A write that a limit refused before a handoff is told to the next agent, and named in the swarm's result."""
    told: list[str] = []

    def opener(request: ModelRequest) -> Any:
        hand = calls("handoff_to_agent", agent_name="closer", message="Close it.")
        second = calls("book", flight="B2")
        if request.step == 1:
            return calls("book", flight="B1")
        if beside:
            return second + hand
        return second if request.step == 2 else hand

    def closer(request: ModelRequest) -> Any:
        told.extend(message.text for message in request.messages)
        return says("Closed.")

    limits = Limits(per_tool={"book": 1})
    opens = Agent(name="opener", model="opens:x", tools=[search, book], limits=limits)
    desk = Swarm(name="desk", agents=[opens, Agent(name="closer", model="closes:x")])
    models = {"opens": ScriptedModel(opener), "closes": ScriptedModel(closer)}
    async with serve(desk, models=models) as client:
        result = await client.run("desk", "Book B1 and B2.")
    named = [line for line in result.missing if 'book(flight="B2")' in line]
    assert len(named) == len(result.missing) == 1
    assert named[0].startswith("opener-1: ")
    assert "".join(told).count('book(flight="B2")') == 1
    assert "Not run, because a limit forbade it:\n• book(" in "".join(told)
    assert RAN["book"] == 1
