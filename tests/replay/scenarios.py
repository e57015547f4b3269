"""The runs whose histories are kept: one scenario each, recorded by `make record-histories`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from perdure import (
    Agent,
    Edge,
    Graph,
    GraphLimits,
    GraphState,
    Limits,
    Node,
    NodeInput,
    SlidingWindow,
    Swarm,
    SwarmLimits,
    ToolFallback,
    ask_person,
    tool,
)
from perdure.errors import InvalidRequest, ModelError, RunNotFound
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.results import ENDED, Approval, RunStatus
from tests.conftest import until, until_status


class Answer(BaseModel):
    city: str
    days: int


@tool
async def look(n: int) -> str:
    """Look."""
    return f"seen {n}"


@tool
async def break_down(n: int) -> str:
    """Fail."""
    raise ValueError("broken")


@tool(effect="write", approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


@tool
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return ""


ALONE = (
    *("parallel", "approval", "stopped", "cancelled", "deadline", "parked", "typed", "limited", "window"),
    *("question", "continued", "fallback", "stood_in", "redriven", "extended"),
)


def _agent(name: str, **changed: Any) -> Agent:
    settings: dict[str, Any] = {
        "model": f"scripted:{'x' if name in ALONE else name}",
        "tools": [look, pay, hang, ask_person],
    }
    return Agent(name=name, **{**settings, **changed})


AGENTS = [
    _agent("parallel"),
    _agent("approval"),
    _agent("stopped"),
    _agent("cancelled"),
    _agent("deadline", limits=Limits(timeout=timedelta(milliseconds=700))),
    _agent("parked"),
    _agent("typed", output_type=Answer, tools=[look]),
    _agent("limited", limits=Limits(tool_calls=2)),
    _agent("window", context=SlidingWindow(messages=6)),
    _agent("question"),
    _agent("continued", limits=Limits(steps=None)),
    _agent("fallback", model="broken:x", fallbacks=["scripted:x"]),
    _agent("outage", model="flaky:x"),
    _agent(
        "stood_in",
        tools=[tool(name="break_down", fallback=ToolFallback(tool="look"))(break_down.function), look],
    ),
    _agent("redriven", model="broken:x"),
    _agent("extended", limits=Limits(steps=3)),
]

_sub = _agent("sub", description="Does one thing.", tools=[look, pay])
_middle = _agent("middle", description="Has it done.", tools=[_sub.as_tool()])


def _again(state: GraphState) -> bool:
    return state.visits["draft"] < 2


async def _stamp(done: NodeInput) -> str:
    return f"stamped {done.inputs['decide']}"


TEAMS: list[Agent | Swarm | Graph] = [
    Swarm(
        name="swarm",
        agents=[_agent("finder", description="Finds.", tools=[look]), _agent("writer", tools=[pay])],
        limits=SwarmLimits(max_handoffs=3, cost_usd=5.0),
    ),
    Graph(
        name="graph",
        nodes={
            "draft": _agent("drafter", tools=[look]),
            "law": _agent("law", tools=[look]),
            "style": _agent("style", tools=[look]),
            "late": Node(_agent("late", tools=[hang]), on_error="skip"),
            "decide": Node(_agent("decider", tools=[]), join=2),
            "stamp": _stamp,
        },
        edges=[
            *(edge for n in ("law", "style", "late") for edge in (("draft", n), (n, "decide"))),
            Edge("decide", "draft", when=_again),
            Edge("decide", "stamp", when=lambda state: not _again(state)),
        ],
        entry="draft",
        limits=GraphLimits(max_node_executions=30, node_timeout=timedelta(seconds=4)),
        siblings="finish",
    ),
    _agent(
        "supervisor", tools=[_middle.as_tool(), _sub.as_tool()], limits=Limits(cost_usd=2.0, tool_calls=9)
    ),
    _agent("collector", tools=[_sub.as_tool(collect="completion")]),
    _agent("tree_cancelled", tools=[_agent("hanger", description="Hangs.", tools=[hang]).as_tool()]),
    _agent("session", tools=[look, pay], limits=Limits(timeout=timedelta(minutes=5))),
    _agent("planner", tools=[look], planning=True, context=SlidingWindow(messages=6)),
]

_failures: dict[str, int] = {}


def _script(request: ModelRequest) -> Any:  # noqa: C901 - one case a task
    if request.config.model != "x":
        return _team_script(request)
    task = request.messages[0].text
    step = request.step
    match task:
        case "parallel":
            return [calls("look", n=n) for n in range(3)] + [calls("nothing")] if step == 1 else says("done")
        case "approval":
            return [calls("look", n=1), calls("pay", cents=5)] if step == 1 else says("done")
        case "stopped" | "cancelled" | "deadline":
            return calls("hang")
        case "parked":
            _failures[task] = _failures.get(task, 0) + 1
            if _failures[task] == 1:
                raise ModelError("authentication", "no key")
            return says("done")
        case "typed":
            return calls("final_answer", city="Bonn", days="x" if step == 1 else 3)
        case "limited":
            return says("done") if request.tool_choice == "none" else calls("look", n=step)
        case "stood_in":
            return calls("break_down", n=1) if step == 1 else says("done")
        case "question":
            return calls("ask_person", question="Which?") if step == 1 else says("done")
        case _:
            return says("done") if step > 12 else calls("look", n=step)


def _team_script(request: ModelRequest) -> Any:  # noqa: C901 - one case an agent
    """Of the agents in teams: the model's name tells who speaks."""
    who, step = request.config.model, request.step
    match who:
        case "finder":
            if step == 1:
                return calls("look", n=1)
            return calls("handoff_to_agent", agent_name="writer", message="found", context={"n": 1})
        case "writer":
            return calls("pay", cents=1) if step == 1 else says("written")
        case "sub":
            return [calls("look", n=step), calls("pay", cents=step)] if step == 1 else says("did it")
        case "middle":
            return calls("sub", input="below") if step == 1 else says("had it done")
        case "supervisor":
            if step > 1 or request.tool_choice == "none":
                return says("all done")
            return [calls("middle", input="a"), *(calls("sub", input=str(n)) for n in range(3))]
        case "collector":
            return [calls("sub", input="a"), calls("sub", input="b")] if step == 1 else says(f"heard {step}")
        case "tree_cancelled":
            return calls("hanger", input="x")
        case "hanger" | "late":
            return calls("hang")
        case "session":
            if request.messages[-1].role == "tool":
                return says("seen" if step < 20 else "enough")
            return calls("pay", cents=2) if "pay" in request.messages[-1].text else calls("look", n=step)
        case "planner":
            if step == 1:
                return calls("update_plan", items=[{"text": "look"}, {"text": "tell", "state": "pending"}])
            return says("done") if step > 6 else calls("look", n=step)
        case _:
            return says(f"{who} has spoken")


def _broken(request: ModelRequest) -> Any:
    raise ModelError("not_found", "no such model")


def _flaky(request: ModelRequest) -> Any:
    _failures["outage"] = _failures.get("outage", 0) + 1
    if _failures["outage"] == 1:
        raise ModelError("overloaded", "away")
    return calls("look", n=1) if request.step == 1 else says("done")


MODELS = {
    "scripted": ScriptedModel(_script),
    "flaky": ScriptedModel(_flaky),
    "broken": ScriptedModel(_broken),
}


async def _nothing(client: Client, run: Run) -> None:
    pass


async def _approve(client: Client, run: Run) -> None:
    await until_status(client, run.id, "waiting_approval")
    await run.send("by the way")
    await run.resolve_approval("call-1-2", allow=True, by="lee", arguments={"cents": 4})


async def _stop(client: Client, run: Run) -> None:
    await until_status(client, run.id, "acting")
    await run.stop()


async def _cancel(client: Client, run: Run) -> None:
    await until_status(client, run.id, "acting")
    await run.cancel()


async def _resume(client: Client, run: Run) -> None:
    await until_status(client, run.id, "parked")
    await run.resume()


async def _extend(client: Client, run: Run) -> None:
    await run.result()
    await run.extend(limits=Limits(steps=6), by="lee", reason="it is worth it")
    await run.result()
    await run.extend(limits=Limits(steps=30), by="lee")


async def _redrive(client: Client, run: Run) -> None:
    await until_status(client, run.id, "parked")
    await run.redrive(model="scripted:x", limits=Limits(steps=30))


async def _answer(client: Client, run: Run) -> None:
    await until_status(client, run.id, "waiting_person")
    await run.pause()
    await run.resume()
    await run.send("the blue one")


async def _approve_below(client: Client, run: Run) -> None:
    """Say yes to all that waits anywhere in the tree, from its root, until the root is over."""
    decided: set[tuple[str, str]] = set()

    async def over() -> bool:
        return (await _approve_new(run, decided)).status in ENDED

    await until(over, within=60)


async def _approve_new(run: Run, decided: set[tuple[str, str]]) -> RunStatus:
    status = await run.status()
    for one in status.waiting:
        if isinstance(one, Approval) and (one.run_id, one.call_id) not in decided:
            decided.add((one.run_id, one.call_id))
            named = {"call_id": one.call_id, "run_id": one.run_id, "digest": one.digest}
            await run.handle.execute_update("resolve_approval", {**named, "allow": True, "by": "lee"})
    return status


async def _approve_until(client: Client, run_id: str, is_over: Callable[[], bool]) -> None:
    """Approve all that waits anywhere below the session, until its turn is over."""
    decided: set[tuple[str, str]] = set()

    async def over() -> bool:
        with suppress(RunNotFound, InvalidRequest):  # the session begins with its first message
            await _approve_new(client.get(run_id), decided)
        return is_over()

    await until(over, within=60)


async def _cancel_tree(client: Client, run: Run) -> None:
    async def hangs() -> bool:
        with suppress(RunNotFound):
            return (await client.get(f"{run.id}/~hanger-1-1").status()).status == "acting"
        return False

    await until(hangs)
    await run.cancel()


_PEOPLE: dict[str, Callable[[Client, Run], Awaitable[None]]] = {
    "approval": _approve,
    "stopped": _stop,
    "cancelled": _cancel,
    "parked": _resume,
    "redriven": _redrive,
    "extended": _extend,
    "question": _answer,
    "swarm": _approve_below,
    "supervisor": _approve_below,
    "collector": _approve_below,
    "tree_cancelled": _cancel_tree,
}


async def _talk(client: Client) -> Run:
    """A session of some turns: one steered, one with an approval, one interrupted, then closed."""
    session = await client.session("replay-session", agent="session", user="ann", max_idle=timedelta(days=1))
    for number in range(6):
        await session.say(f"look {number}", id=f"m-{number}")
    await session.say("look 0", id="m-0")
    paying = asyncio.ensure_future(session.say("pay", id="m-pay"))
    await until_status(client, session.id, "waiting_approval")
    steering = asyncio.ensure_future(session.say("be quick", id="m-steer", when_busy="steer"))
    await session.resolve_approval("call-13-1", allow=True, by="lee")
    await asyncio.gather(paying, steering)
    held = asyncio.ensure_future(session.say("pay again", id="m-held"))
    await until_status(client, session.id, "waiting_approval")
    await session.interrupt()
    await held
    await session.close()
    await session.run.result()
    return session.run


TEAM_SESSIONS = {"swarm_session": "swarm", "graph_session": "graph"}
"""Sessions with a team, by scenario."""


async def _talk_to_team(client: Client, name: str) -> Run:
    """A session of a team, two turns long, then closed."""
    session = await client.session(f"replay-{name}", agent=TEAM_SESSIONS[name], user="ann")
    for number in range(2):
        saying = asyncio.ensure_future(session.say(f"look {number}", id=f"m-{number}"))
        await _approve_until(client, session.id, saying.done)
        await saying
    await session.close()
    await session.run.result()
    return session.run


async def play(client: Client, name: str) -> Run:
    """Play the scenario to its end."""
    if name == "session":
        return await _talk(client)
    if name in TEAM_SESSIONS:
        return await _talk_to_team(client, name)
    run = await client.start(name, name, id=f"replay-{name}", user="ann")
    await _PEOPLE.get(name, _nothing)(client, run)
    await run.result()
    return run
