"""Who plays: agents that call each other, swarms, graphs and sessions of them, with limits drawn anew."""

from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from perdure import Agent, Graph, GraphLimits, Limits, Node, Swarm, SwarmLimits, ask_person, tool
from perdure.graph import Edge, GraphState, NodeInput
from perdure.members import Member, for_member, resolve_member
from perdure.model import ModelConfig
from perdure.prices import shipped_prices
from perdure.wire.requests import RunRequest, SessionRequest
from tests.unit.runs import NOW

from .world import Shell, World


@tool
def work(n: int = 0) -> str:
    """Work."""
    return str(n)


@tool(concurrency=1)
def single() -> str:
    """Work, one at a time."""
    return "done"


@tool(approval=True, effect="write")
def pay() -> str:
    """Pay."""
    return "paid"


class Verdict(BaseModel):
    """Answer of the typed agents."""

    n: int


TOOLS = (work, single, pay, ask_person)
MOST_TOKENS = 200
"""Of an answer, unless a budget says less."""

_bounds = st.fixed_dictionaries(
    {},
    optional={
        "tool_calls": st.integers(0, 30),
        "input_tokens": st.integers(500, 200_000),
        "output_tokens": st.integers(50, 10_000),
        "total_tokens": st.integers(1_000, 200_000),
        "cost_usd": st.floats(0.003, 2),
        "per_tool": st.sampled_from([{"work": 1}, {"pay": 0}]),
    },
)
_tight = st.fixed_dictionaries({"tool_calls": st.integers(2, 20)})
bounds = st.just(dict[str, Any]()) | _tight | _bounds
"""Of agents, swarms, graphs and requests alike; of many, none."""


def _model(name: str) -> ModelConfig:
    return ModelConfig(name=f"scripted:{name}", max_tokens=MOST_TOKENS)


def agent(name: str, limits: dict[str, Any], *more: Any, **settings: Any) -> Agent:
    """One that has all the tools, and more."""
    given: dict[str, Any] = {
        "model": _model(name),
        "fallbacks": [_model("second")],
        "description": "Works.",
        "limits": Limits.model_validate({"steps": 8, **limits}),
    }
    return Agent(name=name, tools=[*TOOLS, *more], **(given | settings))


def family(limits: list[dict[str, Any]], *, planning: bool = False, park: bool = True) -> Agent:
    """An agent that calls others, of which one calls another."""
    on_failure = "park" if park else "fail"
    minion = agent("minion", limits[0], on_failure=on_failure)
    worker = agent("worker", limits[1], minion.as_tool(), on_failure=on_failure)
    helper = agent("helper", limits[2], on_failure=on_failure, output_type=Verdict)
    tools = (worker.as_tool(concurrency=2), helper.as_tool(collect="completion"))
    return agent("boss", limits[3], *tools, planning=planning, on_failure=on_failure)


def swarm(limits: list[dict[str, Any]], **settings: Any) -> Swarm:
    """Three agents, of which one has a family."""
    last = agent("last", limits[1], output_type=Verdict)
    members = [agent("first", limits[0]), family(limits, **settings), last]
    return Swarm(name="swarm", agents=members, limits=SwarmLimits(max_handoffs=4, **limits[4]))


def _compute(given: NodeInput) -> str:
    return given.task


def _again(state: GraphState) -> bool:
    return state.visits["draft"] < 3


def graph(limits: list[dict[str, Any]], siblings: Any = "cancel", **settings: Any) -> Graph:
    """Agents side by side, a function, a swarm in it, and a way back."""
    nodes: dict[str, Any] = {
        "plan": _compute,
        "draft": Node(agent("draft", limits[0], on_failure="fail"), join="any"),
        "check": Node(agent("check", limits[1], on_failure="fail"), on_error="skip", retries=1),
        "debate": swarm(limits, **settings),
        "end": Node(_compute, join="any"),
    }
    plain = [("plan", "draft"), ("plan", "check"), ("plan", "debate"), ("draft", "end"), ("check", "end")]
    return Graph(
        name="graph",
        nodes=nodes,
        edges=[*plain, ("debate", "end"), Edge("draft", "draft", _again)],
        entry="plan",
        concurrency=2,
        siblings=siblings,
        limits=GraphLimits(max_node_executions=12, **limits[3]),
    )


def world_of(member: Member, request: dict[str, Any], *, session: bool = False) -> tuple[World, Shell]:
    """A world in which that member is the root; it has not begun."""
    found = resolve_member(
        member, prices=shipped_prices(), today=NOW.date(), cost_limited="cost_usd" in request
    )
    names = [found.spec.name, *(one.name for one in found.members)]
    everyone = {name: one for name in names if (one := for_member(found, name))}
    world = World(resolved=everyone)
    for graph_of in [member, *_below(member)]:
        if isinstance(graph_of, Graph):
            world.codes[graph_of.name] = graph_of.code()
    asked = {"agent": member.name, "prompt": "the task", "limits": request or None}
    if session:
        opened = SessionRequest.model_validate(
            {"agent": member.name, "session_limits": request or None, "max_idle": None}
        )
        return world, world.begin(found, RunRequest(agent="x", prompt="x"), opened)
    return world, world.begin(found, RunRequest.model_validate(asked))


def _below(member: Member) -> list[Member]:
    return [one for child in member.members.values() for one in (child, *_below(child))]
