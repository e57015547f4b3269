"""Clocks stand still while people decide: of nodes, turns, sub-agents, and of a root that says so.

Each row has a twin whose limit counts all time. The twin begins later, and ends by its clock: then the other's clock
would have been over too.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

from perdure import (
    Agent,
    Graph,
    GraphLimits,
    InvalidRequest,
    Limits,
    RunNotFound,
    Swarm,
    SwarmLimits,
    ask_person,
    tool,
)
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.results import Approval, Question, RunResult, Waiting
from tests.conftest import Serve, check_rows, until_queried

SHORT = timedelta(seconds=12)
LONG = timedelta(minutes=15)


@tool(approval=True, effect="write")
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


def _script(request: ModelRequest) -> Any:
    match request.config.model:
        case "boss" if request.step == 1:
            return calls("clerk", input="Pay.")
        case "clerk" if request.step == 1:
            return calls("pay", cents=5)
        case "asker" if request.step == 1:
            return calls("ask_person", question="Which?")
        case _:
            return says(request.messages[-1].tool_results[0].text)


def _agent(name: str, model: str, *tools: Any, **limits: Any) -> Agent:
    bounds = Limits(**limits) if limits else Limits()
    return Agent(name=name, model=f"scripted:{model}", description="Pays.", tools=tools, limits=bounds)


CLERK, ASKER = _agent("clerk", "clerk", pay), _agent("asker", "asker", ask_person)


def _swarm(name: str, **limits: Any) -> Swarm:
    return Swarm(name=name, agents=[CLERK, ASKER], limits=SwarmLimits(**limits))


def _graph(name: str, node: Member, **limits: Any) -> Graph:
    return Graph(name=name, nodes={"pays": node}, edges=[], entry="pays", limits=GraphLimits(**limits))


def _sub(excludes: bool | None) -> Any:
    name = f"sub-{excludes}".lower()
    return _agent(name, "clerk", pay, timeout=SHORT, timeout_excludes_people=excludes).as_tool(name="clerk")


INNER, COUNTS = _swarm("inner", timeout=LONG), _sub(False)
ROWS: dict[str, tuple[Member, Member]] = {
    "node of a swarm": (
        _swarm("swarm", node_timeout=SHORT),
        _swarm("swarm-counts", node_timeout=SHORT, node_timeout_excludes_people=False),
    ),
    "node of a graph": (
        _graph("graph", ASKER, node_timeout=SHORT),
        _graph("graph-counts", ASKER, node_timeout=SHORT, node_timeout_excludes_people=False),
    ),
    "team as a node": (
        _graph("outer", INNER, node_timeout=SHORT),
        _graph(
            "outer-counts",
            INNER,
            node_timeout=SHORT,
            node_timeout_excludes_people=False,
        ),
    ),
    "sub-agent": (
        _agent("boss", "boss", _sub(None)),
        _agent("boss-counts", "boss", COUNTS),
    ),
    "called within a time": (
        _agent("caller", "boss", CLERK.as_tool(timeout=SHORT)),
        _agent("caller-counts", "boss", COUNTS),
    ),
    "root": (
        _agent("root", "clerk", pay, timeout=SHORT, timeout_excludes_people=True),
        _agent("root-counts", "clerk", pay, timeout=SHORT),
    ),
    "root above": (
        _agent("above", "boss", CLERK.as_tool(), timeout=SHORT, timeout_excludes_people=True),
        _agent("above-counts", "boss", CLERK.as_tool(), timeout=SHORT),
    ),
    "team itself": (
        _swarm("desk", timeout=SHORT, timeout_excludes_people=True),
        _swarm("desk-counts", timeout=SHORT),
    ),
}


async def _waiting(run: Run) -> Waiting:
    found: list[Waiting] = []

    async def is_there() -> bool:
        with suppress(RunNotFound, InvalidRequest):
            found[:] = (await run.status()).waiting
        return bool(found)

    await until_queried(is_there)
    return found[0]


async def _resolve(run: Run, item: Waiting) -> None:
    if isinstance(item, Approval):
        await run.resolve_approval(item, allow=True, by="lee")
    else:
        assert isinstance(item, Question)
        await run.send("paid 5", call_id=item)


def _check_named(result: RunResult) -> None:
    """What waited when the time was over is named: which call, and since when."""
    words = "; ".join([*result.missing, str(result.output)])
    assert "nobody had" in words, result
    assert " UTC" in words


async def _row(client: Client, standing: Member, counting: Member) -> None:
    run = await client.start(standing.name, "Pay.")
    item = await _waiting(run)
    twin = await client.start(counting.name, "Pay.")
    ended = await asyncio.wait_for(twin.result(), 60)
    assert "paid 5" not in str(ended.output)
    _check_named(ended)
    await _resolve(run, item)
    result = await run.result()
    assert (result.stop_reason, "paid 5" in str(result.output)) == ("end_turn", True)


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def worker(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Cold: each workflow task replays the whole history, so a clock that is not deterministic fails."""
    return {} if request.param == "warm" else {"max_cached_workflows": 0}


async def test_clocks_stand_still_while_people_decide(serve: Serve) -> None:
    members = [member for pair in ROWS.values() for member in pair]
    async with serve(*members, models={"scripted": ScriptedModel(_script)}) as client:
        await check_rows({name: _row(client, *pair) for name, pair in ROWS.items()})


TURNS: dict[str, tuple[Member, Member]] = {
    "of an agent": (
        _agent("turns", "clerk", pay, timeout=SHORT),
        _agent("turns-count", "clerk", pay, timeout=SHORT, timeout_excludes_people=False),
    ),
    "with a run below": (
        _agent("turns-above", "boss", CLERK.as_tool(), timeout=SHORT),
        _agent("turns-above-count", "boss", CLERK.as_tool(), timeout=SHORT, timeout_excludes_people=False),
    ),
    "of a swarm": (
        _swarm("turns-desk", timeout=SHORT),
        _swarm("turns-desk-count", timeout=SHORT, timeout_excludes_people=False),
    ),
}


async def _turn(client: Client, standing: Member, counting: Member, tag: str) -> None:
    session = await client.session(f"{standing.name}-{tag}", agent=standing.name)
    turn = asyncio.create_task(session.say("Pay."))
    item = await _waiting(session.run)
    twin = await client.session(f"{counting.name}-{tag}", agent=counting.name)
    late = await twin.say("Pay.")
    assert late.stop_reason == "deadline"
    # The run below may end first: then its result, which the reply quotes, names what it left undone.
    assert "nobody had approved or denied" in "; ".join([*late.missing, str(late.output)])
    await _resolve(session.run, item)
    assert "paid 5" in (await turn).text
    history = [event async for event in session.run.handle.fetch_history_events()]
    kinds = [event.event_type for event in history]
    assert kinds.count(EventType.EVENT_TYPE_TIMER_FIRED) == 0
    assert kinds.count(EventType.EVENT_TYPE_TIMER_CANCELED) >= 1, "it was unset while a person decided"


async def test_turn_clock_stands_still(
    serve: Serve, worker: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """A turn's time is not a person's, wherever below the person is asked."""
    tag = request.node.callspec.id
    members = [member for pair in TURNS.values() for member in pair]
    async with serve(*members, models={"scripted": ScriptedModel(_script)}, worker=worker) as client:
        await check_rows({name: _turn(client, *pair, tag) for name, pair in TURNS.items()})
