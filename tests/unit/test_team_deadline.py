"""The deadline of a team, when the run below notices it first."""

from datetime import UTC, datetime, timedelta

import pytest

from perdure import Agent, Graph, GraphLimits
from perdure.members import resolve_member
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult, StopReason
from perdure.workflows.engine.commands import Finish, StartNodes
from perdure.workflows.engine.events import ChildEnded, NodesStarted
from perdure.workflows.engine.programs import program_for
from perdure.workflows.engine.state import Origin

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMEOUT = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("ended_after", "reason"),
    [(TIMEOUT, "deadline"), (TIMEOUT / 2, "end_turn")],
    ids=["the team's", "the node's own"],
)
def test_shared_deadline_is_the_teams_end(ended_after: timedelta, reason: StopReason) -> None:
    """A node that ends by the team's deadline ends the team by it; one with an earlier deadline does not."""
    node = Agent(name="a", model="scripted:x")
    graph = Graph(name="g", nodes={"a": node}, entry="a", limits=GraphLimits(timeout=TIMEOUT))
    resolved = resolve_member(graph)
    program = program_for(resolved.spec)
    state = program.initial(RunRequest(agent="g", prompt="go"), NOW, Origin(id="r", members=resolved.members))
    start = program.decide(state)
    assert isinstance(start, StartNodes)
    state = program.fold(state, NodesStarted(starts=start.starts, at=NOW))
    outcome = RunResult(agent="a", stop_reason="deadline", cost_microusd=0)
    state = program.fold(state, ChildEnded(key=start.starts[0].key, outcome=outcome, at=NOW + ended_after))
    end = program.decide(state)
    assert isinstance(end, Finish)
    assert end.end.stop_reason == reason
