"""A swarm, a graph and a debate for tests that kill their worker: tools and functions write into the ledger."""

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import Any

from perdure import Agent, ToolContext, tool
from perdure.graph import Edge, Graph, GraphState, NodeInput
from perdure.limits import GraphLimits
from perdure.model import ModelRequest
from perdure.swarm import Swarm
from perdure.testing import ScriptedModel, calls, says
from perdure.tools import as_tool
from tests.debates import load_debate

from . import crew
from .crew import note


def once(what: str, run: str, key: str) -> str:
    """Do the effect, unless its key shows that it has been done; each attempt is written down."""
    note(what, run, key)
    with closing(sqlite3.connect(crew.LEDGER, timeout=30)) as db, db:
        db.execute("insert into effects values (?, ?, ?) on conflict do nothing", (key, run, what))
    return f"{what} done"


@tool(effect="write")
async def charge(context: ToolContext) -> str:
    """Charge: the effect, then some more work, so that a kill falls between effect and answer."""
    said = once("charge", context.user or "", context.idempotency_key)
    await asyncio.sleep(0.2)
    return said


async def book(given: NodeInput) -> str:
    """An effect, then some more work."""
    said = once("book", given.user or "", given.idempotency_key)
    await asyncio.sleep(0.2)
    return said


def bill(given: NodeInput) -> str:
    """As `book`, in a thread."""
    said = once("bill", given.user or "", given.idempotency_key)
    time.sleep(0.2)
    return said


async def ship(given: NodeInput) -> dict[str, Any]:
    """The last node: what it was given is the graph's output."""
    once("ship", given.user or "", given.idempotency_key)
    return {"from": sorted(given.inputs), "prompt": given.prompt}


async def _answer(request: ModelRequest) -> Any:
    note("model", request.user or "", f"{request.config.model} {request.step}")
    await asyncio.sleep(0.1)
    return _PARTS[request.config.model][request.step - 1]


def _to(name: str) -> Any:
    return calls("handoff_to_agent", agent_name=name, message=f"go on, {name}", context={"saw": name})


_PARTS: dict[str, list[Any]] = {
    "plan": [calls("charge"), _to("do")],
    "do": [calls("charge") + _to("check")],
    "check": [calls("charge"), says("all checked")],
    "draft": [calls("charge"), says("a draft")],
    "review": [says("reviewed")],
    "pro": [calls("charge"), says("yes")],
    "con": [calls("charge"), says("no")],
    "verdict": [calls("charge"), says("maybe")],
}
CALLS_OF_SWARM = sum(len(_PARTS[name]) for name in ("plan", "do", "check"))
CALLS_OF_DEBATE = 2 * sum(len(_PARTS[name]) for name in ("pro", "con")) + len(_PARTS["verdict"])
CALLS_OF_GRAPH = CALLS_OF_SWARM + 2 * (len(_PARTS["draft"]) + len(_PARTS["review"]))


def _agent(name: str, *tools: Any) -> Agent:
    return Agent(name=name, model=f"scripted:{name}", description=f"Does {name}.", tools=tools)


swarm = Swarm(
    name="swarm",
    description="Does it all.",
    agents=[_agent(name, charge) for name in ("plan", "do", "check")],
)


def again(state: GraphState) -> bool:
    """One more round."""
    return state.visits["review"] < 2


def enough(state: GraphState) -> bool:
    """No more rounds."""
    return not again(state)


graph = Graph(
    name="graph",
    description="Does it all, twice.",
    nodes={
        "draft": _agent("draft", charge),
        "book": book,
        "bill": bill,
        "review": _agent("review"),
        "team": swarm,
        "ship": ship,
    },
    edges=[
        *(("draft", name) for name in ("book", "bill")),
        *((name, "review") for name in ("book", "bill")),
        Edge("review", "draft", again),
        Edge("review", "team", enough),
        Edge("team", "ship"),
    ],
    entry="draft",
    limits=GraphLimits(max_node_executions=20),
)

door = Agent(name="door", model="scripted:door", tools=[as_tool(swarm), as_tool(graph)])
"""Nobody runs it: whom an agent may call is served with it."""

models = {"scripted": ScriptedModel(_answer)}

debate = load_debate().Debate(
    name="debate",
    description="Talks it over.",
    speakers=[_agent("pro", charge), _agent("con", charge)],
    judge=_agent("verdict", charge),
)
