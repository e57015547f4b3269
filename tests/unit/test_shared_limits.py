"""The cause of a node's end: a limit of its own, or one of the whole team."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from perdure import Agent, Graph, GraphLimits, Limits, tool
from perdure.members import resolve_member
from perdure.messages import Usage
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult, StopReason
from perdure.workflows.engine.commands import Finish, StartNodes
from perdure.workflows.engine.events import ChildEnded, NodesStarted
from perdure.workflows.engine.programs import program_for
from perdure.workflows.engine.state import End, Origin

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FREE = Limits(steps=None)


@tool
async def look() -> str:
    """Look."""
    return "seen"


@tool
async def pay() -> str:
    """Pay."""
    return "paid"


def end_of_team(limits: GraphLimits, own: Limits, outcomes: list[RunResult]) -> End:
    """Return the end of a graph of one node after another, which end like this."""
    names = [f"n{at}" for at in range(len(outcomes))]
    member = Agent(name="a", model="scripted:x", limits=own, tools=[look, pay])
    graph = Graph(
        name="g",
        nodes=dict.fromkeys(names, member),
        edges=list(pairwise(names)),
        entry="n0",
        limits=limits,
    )
    resolved = resolve_member(graph)
    program = program_for(resolved.spec)
    state = program.initial(RunRequest(agent="g", prompt="go"), NOW, Origin(id="r", members=resolved.members))
    for outcome in outcomes:
        command = program.decide(state)
        assert isinstance(command, StartNodes)
        state = program.fold(state, NodesStarted(starts=command.starts, at=NOW))
        state = program.fold(state, ChildEnded(key=command.starts[0].key, outcome=outcome, at=NOW))
    command = program.decide(state)
    assert isinstance(command, Finish), command
    return command.end


def node(reason: StopReason = "end_turn", **used: Any) -> RunResult:
    fields: dict[str, Any] = {"output": "so far", "cost_microusd": 0, **used}
    return RunResult(agent="a", stop_reason=reason, **fields)


def wrote(tokens: int) -> Usage:
    return Usage(output_tokens=tokens)


@pytest.mark.parametrize(
    ("limits", "own", "outcomes", "reason"),
    [
        ({"steps": 2}, FREE, [node("max_steps", steps=2)], "max_steps"),
        ({"steps": 2}, Limits(), [node("max_steps", steps=2)], "max_steps"),
        ({"steps": 60}, Limits(), [node("max_steps", steps=50)], "end_turn"),
        ({"tool_calls": 2}, Limits(tool_calls=100), [node("max_tool_calls", tool_calls=2)], "max_tool_calls"),
        ({"tool_calls": 100}, Limits(tool_calls=2), [node("max_tool_calls", tool_calls=2)], "end_turn"),
        (
            {"tool_calls": 6},
            Limits(tool_calls=4),
            [node(tool_calls=3), node("max_tool_calls", tool_calls=3)],
            "max_tool_calls",
        ),
        (
            {"tool_calls": 9},
            Limits(tool_calls=4),
            [node("max_tool_calls", tool_calls=4), node(tool_calls=3)],
            "end_turn",
        ),
        (
            {"per_tool": {"look": 9}},
            Limits(tool_calls=4),
            [node("max_tool_calls", tool_calls=4, refused_calls={"pay": 1})],
            "end_turn",
        ),
        (
            {"per_tool": {"pay": 1}, "per_tool_ends": True},
            Limits(per_tool={"pay": 5}),
            [node("max_tool_calls", tool_calls=1, per_tool={"pay": 1}, refused_calls={"pay": 1})],
            "max_tool_calls",
        ),
        ({"identical_calls": 3}, FREE, [node("max_tool_calls", tool_calls=3)], "max_tool_calls"),
        (
            {"identical_calls": 3},
            Limits(identical_calls=2, tool_calls=50),
            [node("max_tool_calls", tool_calls=2)],
            "end_turn",
        ),
        (
            {"identical_calls": 2},
            Limits(identical_calls=5, tool_calls=50),
            [node("max_tool_calls", tool_calls=2)],
            "max_tool_calls",
        ),
        (
            {"total_tokens": 900},
            Limits(output_tokens=50),
            [node("token_budget", usage=wrote(45))],
            "end_turn",
        ),
        (
            {"total_tokens": 100},
            Limits(output_tokens=500),
            [node("token_budget", usage=wrote(95))],
            "token_budget",
        ),
        ({"cost_usd": 1.0}, Limits(cost_usd=0.1), [node("cost_budget", cost_microusd=95_000)], "end_turn"),
        ({"cost_usd": 0.1}, Limits(cost_usd=1.0), [node("cost_budget", cost_microusd=95_000)], "cost_budget"),
        ({"cost_usd": 0.1}, Limits(), [node("cost_budget", cost_microusd=95_000)], "cost_budget"),
        ({"output_tokens": 9}, Limits(), [node("max_steps", steps=50)], "end_turn"),
    ],
)
def test_tighter_bound_is_the_cause(
    limits: dict[str, Any], own: Limits, outcomes: list[RunResult], reason: StopReason
) -> None:
    """A team ends by a limit of its own that has cut a node short, and not by one of the node's alone."""
    assert end_of_team(GraphLimits(**limits), own, outcomes).stop_reason == reason
