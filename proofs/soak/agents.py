"""Agents that the workers of the soak serve; together they do everything a run can do."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any

from perdure import Agent, Limits, Swarm, SwarmLimits, tool
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, fails, says

LONG_STEPS = 60
CHILDREN = 6
DUMP_BYTES = 200_000
STORY = "".join(f"word{n} " for n in range(300))


@tool
async def look(n: int) -> str:
    """Look something up."""
    await asyncio.sleep(0.01)
    return f"seen {n}: " + "x" * 500


@tool
def dump(seed: str) -> str:
    """Return a text that is too long for a model, and differs each time."""
    block = hashlib.sha256(seed.encode()).hexdigest()
    return (f"{block} " * (DUMP_BYTES // (len(block) + 1) + 1))[:DUMP_BYTES]


@tool(effect="write", approval=True)
def pay(cents: int) -> str:
    """Pay, if a person approves."""
    return f"paid {cents}"


@tool
def wrong(why: str) -> str:
    """Fail."""
    raise ValueError(f"it is wrong: {why}")


@tool(timeout=timedelta(minutes=10))
async def hang() -> str:
    """Hang for longer than any caller waits."""
    await asyncio.sleep(600)
    return "at last"


def _last(request: ModelRequest) -> str:
    return next(m.text for m in reversed(request.messages) if m.role == "user")


def _steady(request: ModelRequest) -> Any:
    return calls("look", n=request.step) if request.step <= 3 else says("done")


def _long(request: ModelRequest) -> Any:
    return calls("look", n=request.step) if request.step <= LONG_STEPS else says("done")


def _big(request: ModelRequest) -> Any:
    return calls("dump", seed=f"{_last(request)} {request.step}") if request.step <= 4 else says("done")


def _careful(request: ModelRequest) -> Any:
    return calls("pay", cents=5) if request.step == 1 else says("done")


def _unlucky(request: ModelRequest) -> Any:
    if request.step > 2:
        return says("done")
    return [calls("wrong", why="always"), calls("look", n="not a number"), calls("nobody", at="home")]


def _patient(request: ModelRequest) -> Any:
    return calls("hang")


def _finder(request: ModelRequest) -> Any:
    if request.step == 1:
        return calls("look", n=1)
    return calls("handoff_to_agent", agent_name="writer", message="write it", context={"found": "a lot"})


def _boss(request: ModelRequest) -> Any:
    if request.step == 1:
        return [calls("clerk", input=f"job {n}") for n in range(CHILDREN)]
    return says("done")


def _talk(request: ModelRequest) -> Any:
    if request.messages[-1].role == "tool":
        return says(f"done: {_last(request)}")
    return calls("look", n=1)


def _say_done(request: ModelRequest) -> Any:
    return says("done")


def _reject_model(request: ModelRequest) -> Any:
    return fails("not_found")


def _reject_payment(request: ModelRequest) -> Any:
    return fails("payment")


_SCRIPTS: dict[str, Any] = {
    "steady": _steady,
    "long": _long,
    "big": _big,
    "careful": _careful,
    "unlucky": _unlucky,
    "patient": _patient,
    "finder": _finder,
    "writer": _say_done,
    "boss": _boss,
    "clerk": _steady,
    "talk": _talk,
    "gone": _reject_model,
    "broke": _reject_payment,
}


def _script(request: ModelRequest) -> Any:
    return _SCRIPTS[request.config.model](request)


def _agent(name: str, **settings: Any) -> Agent:
    defaults: dict[str, Any] = {"model": f"scripted:{name}", "description": "Works."}
    return Agent(name=name, **(defaults | settings))


models = {
    "scripted": ScriptedModel(_script),
    "story": ScriptedModel(lambda request: says(STORY), delay=timedelta(milliseconds=20), chunk=40),
}

agents = [
    _agent("steady", tools=[look]),
    _agent("long", tools=[look], limits=Limits(steps=LONG_STEPS + 1)),
    _agent("big", tools=[dump]),
    _agent("careful", tools=[pay]),
    _agent("unlucky", model="scripted:gone", fallbacks=["scripted:unlucky"], tools=[wrong, look]),
    _agent("patient", tools=[hang]),
    _agent("parked", model="scripted:broke"),
    _agent("talk", tools=[look]),
    _agent("teller", model="story:x"),
    _agent(
        "boss", tools=[_agent("clerk", tools=[look]).as_tool()], limits=Limits(cost_usd=1.0, tool_calls=100)
    ),
    Swarm(
        name="desk",
        agents=[_agent("finder", tools=[look]), _agent("writer")],
        limits=SwarmLimits(max_handoffs=3, cost_usd=1.0),
    ),
]
