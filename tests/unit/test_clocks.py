"""Clocks of runs, nodes, turns and sub-agents: which stand still while people decide, and what is due then."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import Agent, Graph, GraphLimits, Limits, Swarm, SwarmLimits, ask_person
from perdure.members import Member, resolve_member
from perdure.messages import Message
from perdure.scheduling import Start
from perdure.wire.requests import ApprovalDecision, RunRequest, SessionRequest
from perdure.wire.results import Approval, Question
from perdure.wire.tree import Amount, BudgetRequest, ChildInput, Lease, Lineage, Report
from perdure.workflows.child_runs import PlaceBelow, input_for
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.clocks import deadline_of, people_event, run_due, session_due, turn_due
from perdure.workflows.engine.commands import StartNodes, Wait
from perdure.workflows.engine.events import (
    ApprovalResolved,
    BudgetRequested,
    CallReturned,
    CallsStarted,
    ChildReported,
    EndRequested,
    Event,
    NodesStarted,
    Paused,
    Said,
    StepBegan,
    TurnBegan,
)
from perdure.workflows.engine.family import unheard_outcome
from perdure.workflows.engine.programs import program_for
from perdure.workflows.engine.report import report_due
from perdure.workflows.engine.session import SessionProgram
from perdure.workflows.engine.state import AgentState, End, Origin, RunState, Utterance
from tests.unit.runs import NOW, begun, call, program_of, reply, result, result_of, spec_of

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
FLAGS = [None, False, True]
ALLOW = ApprovalDecision(call_id="call-1-1", allow=True)


def after(state: Any, *events: Event) -> Any:
    for event in events:
        state = program_of(state).fold(state, event)
    return state


def noted(state: Any, at: datetime, before: RunState | None = None) -> Any:
    """The state once the loop has noted at this time for whom the run waits."""
    waits = isinstance(program_of(state).decide(state), Wait)
    event = people_event(before, state, at, waits=waits)
    return state if event is None else after(state, event)


def of_child(clock_at: datetime | None = None, deadline_at: datetime | None = None) -> ChildInput:
    lineage = Lineage(parent="r", key="a-1", path=["a-1"], spec_digest="", as_of=NOW)
    return ChildInput(lineage=lineage, lease=Lease(lender="r"), clock_at=clock_at, deadline_at=deadline_at)


def child_state(child: ChildInput | None, **spec: Any) -> AgentState:
    program = program_for(spec_of(**spec))
    state = program.initial(RunRequest(agent="a", prompt="go"), NOW, Origin(id="r/~a-1", child=child))
    assert isinstance(state, AgentState)
    return state


def asking(state: Any, *names: str) -> Any:
    state = after(state, StepBegan())
    return after(state, reply(state, *(call(name, question="Which?") for name in names)))


def team_state(member: Member, child: ChildInput | None = None) -> Any:
    resolved = resolve_member(member)
    origin = Origin(id="r", members=resolved.members, child=child)
    return program_for(resolved.spec).initial(RunRequest(agent=member.name, prompt="go"), NOW, origin)


def swarm(**limits: Any) -> Swarm:
    agent = Agent(name="a", model="scripted:x", tools=[ask_person])
    return Swarm(name="s", agents=[agent], limits=SwarmLimits.model_validate({"timeout": None, **limits}))


# -- which clocks stand still


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    ("kind", "stands"),
    [("root", False), ("child agent", True), ("root team", False), ("child team", False)],
)
def test_own_timeout_stands_by_kind_and_name(kind: str, stands: bool, flag: bool | None) -> None:
    """The `timeout` of a root and of a team counts all time, that of a called agent does not; the limit may differ."""
    limits: Any = {"timeout": MINUTE, "timeout_excludes_people": flag}
    child = of_child() if "child" in kind else None
    state = (
        team_state(swarm(**limits), child) if "team" in kind else child_state(child, limits=Limits(**limits))
    )
    wanted = stands if flag is None else flag
    assert (state.deadline_at, state.clock and state.clock.at) == (
        (None, NOW + MINUTE) if wanted else (NOW + MINUTE, None)
    )
    assert run_due(state) == (NOW + MINUTE, "deadline")
    assert deadline_of(state.limits, NOW, child) == NOW + MINUTE


@pytest.mark.parametrize("excludes", [True, False])
@pytest.mark.parametrize("kind", ["swarm", "graph", "agent"])
def test_node_clock_is_the_nodes_own(kind: str, excludes: bool) -> None:
    """A node's time goes to the node alone as a clock, unless its limit counts all time."""
    limits: dict[str, Any] = {"timeout": timedelta(hours=1), "node_timeout_excludes_people": excludes}
    agent = Agent(name="a", model="scripted:x")
    member: Member = swarm(**limits)
    if kind == "graph":
        member = Graph(name="g", nodes={"a": agent}, edges=[], entry="a", limits=GraphLimits(**limits))
    if kind == "agent":
        member = Agent(
            name="b",
            model="scripted:x",
            tools=[agent.as_tool(description="a")],
            limits=Limits(timeout=timedelta(hours=1)),
        )
    state = team_state(member)
    start = Start(key="a-1", node="a", kind="agent", member="a", timeout=MINUTE)
    given = input_for(state, start, NOW, PlaceBelow(parent_execution_id="x", identity="i"))
    counted = not excludes and kind != "agent"
    assert given.clock_at == (None if counted else NOW + MINUTE)
    assert given.deadline_at == NOW + (MINUTE if counted else timedelta(hours=1))
    assert given.deadline_reason == ("node_timeout" if counted else "deadline")
    below = child_state(given)
    assert run_due(below) == (NOW + MINUTE, "node_timeout")
    # Its own clock is not that of the runs below it: they cannot know when it stands still.
    further = input_for(
        below, replace(start, timeout=None), NOW, PlaceBelow(parent_execution_id="x", identity="i")
    )
    assert (further.clock_at, further.deadline_at) == (None, given.deadline_at)


@pytest.mark.parametrize("flag", FLAGS)
def test_turn_clock_stands_unless_named(flag: bool | None) -> None:
    """The turn's clock stands still by default; the session's only by name. Idle time is the idle clock's."""
    limits = Limits(timeout=MINUTE, timeout_excludes_people=flag)
    session_limits = Limits(steps=None, timeout=10 * MINUTE, timeout_excludes_people=flag)
    request = SessionRequest(agent="a", session_limits=session_limits)
    state: Any = SessionProgram(program_for(spec_of(limits=limits))).open(request, NOW, Origin(id="r"))
    state = after(
        state, Said(utterance=Utterance(id="m", message=Message.user("hi"))), TurnBegan(at=NOW + SECOND)
    )
    assert turn_due(state) == NOW + SECOND + MINUTE
    state = noted(asking(state, "pay"), NOW + 2 * SECOND)
    counted = flag is False
    assert turn_due(state) == (NOW + SECOND + MINUTE if counted else None)
    assert session_due(state) == (None if flag else NOW + 10 * MINUTE)
    state = noted(after(state, ApprovalResolved(decision=ALLOW, at=NOW)), NOW + 5 * MINUTE)
    waited = 5 * MINUTE - 2 * SECOND
    assert turn_due(state) == NOW + SECOND + MINUTE + (timedelta() if counted else waited)
    assert session_due(state) == NOW + 10 * MINUTE + (waited if flag else timedelta())
    assert state.deadline_at == min(
        [*([NOW + SECOND + MINUTE] if counted else []), *([] if flag else [NOW + 10 * MINUTE])], default=None
    )


# -- when they stand still


def waiting(**spec: Any) -> Any:
    return child_state(of_child(clock_at=NOW + MINUTE), **spec)


@pytest.mark.parametrize("name", ["pay", "ask_person"])
def test_clock_stands_while_people_decide(name: str) -> None:
    state = noted(asking(waiting(), name), NOW + 10 * SECOND)
    assert (state.people.since, run_due(state)) == (NOW + 10 * SECOND, None)
    # Nothing new: no event, and a continue-as-new carries it.
    program = program_of(state)
    carried = pack(program, state, HistoryFormat())
    assert unpack(program, carried[0], carried[1:])[0] == state == noted(state, NOW + MINUTE)
    stopped = after(state, EndRequested(reason="node_timeout"))
    assert noted(stopped, NOW + MINUTE).people.since is None, "an end is nothing that people are asked"


@pytest.mark.parametrize("beside", ["work", "single"])
def test_clock_runs_while_work_is_pending(beside: str) -> None:
    """Work beside the approval is the agent's own time; it stands still once that has ended."""
    state = asking(waiting(), "pay", beside)
    state = noted(state, NOW + SECOND)
    state = after(state, CallsStarted(ids=("call-1-2",)))
    state = noted(state, NOW + SECOND)
    assert run_due(state) == (NOW + MINUTE, "node_timeout")
    state = noted(after(state, CallReturned(result=result("call-1-2"))), NOW + 30 * SECOND)
    assert (state.people.since, run_due(state)) == (NOW + 30 * SECOND, None)


def test_waits_add_up() -> None:
    """Each wait moves the deadline by its own length, and nothing else does."""
    state = noted(asking(waiting(), "pay", "pay"), NOW + 10 * SECOND)
    state = noted(after(state, ApprovalResolved(decision=ALLOW, at=NOW)), NOW + 110 * SECOND)
    assert run_due(state) == (NOW + 160 * SECOND, "node_timeout")
    state = after(state, CallsStarted(ids=("call-1-1",)))
    state = noted(after(state, CallReturned(result=result("call-1-1", "pay"))), NOW + 120 * SECOND)
    assert run_due(state) is None
    allow = ALLOW.model_copy(update={"call_id": "call-1-2"})
    state = noted(after(state, ApprovalResolved(decision=allow, at=NOW)), NOW + 1120 * SECOND)
    assert run_due(state) == (NOW + 1160 * SECOND, "node_timeout")


def test_paused_work_and_a_budget_are_no_people() -> None:
    """What a pause, an outage or the lender holds back is not what people are asked."""
    paused = after(waiting(), Paused())
    paused = noted(
        after(after(paused, StepBegan()), reply(after(paused, StepBegan()), call("pay"), call("work"))), NOW
    )
    assert run_due(paused) is not None
    state = asking(waiting(), "pay")
    lent = after(state, BudgetRequested(request=BudgetRequest(minimum=Amount(), preferred=Amount())))
    assert run_due(noted(lent, NOW)) is not None
    assert run_due(noted(state, NOW)) is None


def reported(state: Any, key: str, since: datetime | None) -> Any:
    report = Report(key=key, people_since=since)
    return after(state, ChildReported(report=report))


def running_graph() -> Any:
    """A graph below a graph, whose two nodes run."""
    nodes = {name: Agent(name=name, model="scripted:x") for name in "ab"}
    graph = Graph(name="g", nodes=nodes, edges=[], entry=["a", "b"])
    state = team_state(graph, of_child(clock_at=NOW + MINUTE))
    command = program_of(state).decide(state)
    assert isinstance(command, StartNodes)
    return after(state, NodesStarted(starts=command.starts, at=NOW))


def test_wait_below_stops_the_clock_above() -> None:
    """A parent's clock stands still once all below wait for people, from the time that they report."""
    before = running_graph()
    one = reported(before, "a-1", NOW + 5 * SECOND)
    assert run_due(noted(one, NOW + 6 * SECOND, before)) == (NOW + MINUTE, "node_timeout"), "the other works"
    both = noted(reported(one, "b-1", NOW + 20 * SECOND), NOW + 50 * SECOND, one)
    assert (both.people.since, run_due(both)) == (NOW + 20 * SECOND, None), (
        "the report was on its way for a while"
    )
    on = noted(reported(both, "a-1", None), NOW + 80 * SECOND, both)
    assert run_due(on) == (NOW + 2 * MINUTE, "node_timeout")
    # The same wait is not counted twice: the report says an earlier time than that of the last end.
    again = noted(reported(on, "a-1", NOW + 70 * SECOND), NOW + 90 * SECOND, on)
    assert again.people.since == NOW + 80 * SECOND


def test_report_says_since_when() -> None:
    """A child reports once that it waits for people alone, and once that it goes on."""
    state = noted(asking(waiting(), "pay"), NOW + 10 * SECOND)
    report, informed = report_due(state, None)
    assert report is not None
    assert report.people_since == NOW + 10 * SECOND
    state = after(state, informed)
    assert report_due(state, None)[0] is None
    state = noted(
        after(state, ApprovalResolved(decision=ALLOW, at=NOW), CallsStarted(ids=("call-1-1",))), NOW + MINUTE
    )
    report, _ = report_due(state, None)
    assert report is not None
    assert report.people_since is None


# -- what waited when the time was over


@pytest.mark.parametrize(
    ("name", "words"), [("pay", "approved or denied the call"), ("ask_person", "answered the question")]
)
def test_end_names_what_waited(name: str, words: str) -> None:
    state = after(asking(begun(), name), EndRequested(reason="deadline"))
    [line] = result_of(state, End(stop_reason="deadline")).missing
    since = f"{NOW + SECOND:%Y-%m-%d %H:%M:%S} UTC"
    assert line.startswith(f"{name}(")
    assert f"the run was ended (deadline); nobody had {words}, which waited since {since}" in line


def test_child_given_up_names_what_waited() -> None:
    """A run below of which nobody hears any more has said for whom it waits."""
    approval = Approval(call_id="call-1-1", tool="pay", arguments={"cents": 5}, digest="d", since=NOW)
    question = Question(call_id="call-1-2", text="Which?", since=NOW, path=["b-1"])
    report = Report(key="a-1", waiting=[approval, question], people_since=NOW)
    child = after(running_graph(), ChildReported(report=report)).tree.child("a-1")
    assert [line for line in unheard_outcome(child).missing if "since" in line] == [
        "pay(cents=5): nobody had approved or denied it, since 2026-11-20 00:00:00 UTC",
        'b-1: call-1-2 "Which?": nobody had answered it, since 2026-11-20 00:00:00 UTC',
    ]


# -- limits


spans = st.none() | st.integers(1, 9).map(lambda n: n * MINUTE)
flags = st.sampled_from(FLAGS)
limits = st.builds(Limits, timeout=spans, timeout_excludes_people=flags)


@given(limits, limits)
def test_request_cannot_widen_a_timeout(own: Limits, request: Limits) -> None:
    """A request may make a timeout count more time, never less; without a timeout of ours its word holds."""
    strictness: list[bool | None] = [False, None, True]
    merged = own.tightened_by(request).timeout_excludes_people
    if own.timeout is None:
        assert merged == (own if request.timeout_excludes_people is None else request).timeout_excludes_people
    else:
        assert strictness.index(merged) <= strictness.index(own.timeout_excludes_people)
        assert merged in (own.timeout_excludes_people, request.timeout_excludes_people)


def test_limits_without_the_flag_keep_their_bytes() -> None:
    """A spec that does not use the flags has the digest that it had before there were any."""
    for plain in (Limits(), SwarmLimits(), GraphLimits()):
        assert not [name for name in plain.model_dump() if name.endswith("excludes_people")]
