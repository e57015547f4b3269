"""Words of refused extensions: to grant what a refusal names is never refused."""

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perdure import Agent, Graph, GraphLimits, Node, Swarm, SwarmLimits
from perdure.limits import Limits
from perdure.members import resolve_member
from perdure.messages import Usage
from perdure.wire.requests import ExtendRequest, ExtendTurn, RunOrigin, RunRequest, SessionRequest
from perdure.wire.results import NodeResult, StopReason, TurnReply
from perdure.workflows.engine.extension import FIELDS_BY_REASON, extend, extension_of, flat
from perdure.workflows.engine.past import Cut
from perdure.workflows.engine.programs import program_for
from perdure.workflows.engine.session import SessionProgram
from perdure.workflows.engine.state import AgentState, AnsweredTurn, End, Ledger, Origin, RunState, Session
from perdure.workflows.engine.team import TeamProgram
from perdure.workflows.engine.team_state import TeamState
from perdure.workflows.engine.turn_extension import checked_turn_extension
from tests.unit.runs import NOW, begun, program_of

from .casts import pay, work
from .depth import examples

LATER = NOW + timedelta(hours=1)
MOST_ROUNDS = 4
IN_AGENTS: list[StopReason] = ["max_steps", "max_tool_calls", "token_budget", "cost_budget", "deadline"]
TOOLS = st.dictionaries(st.sampled_from(["work", "pay"]), st.integers(0, 4), max_size=2)
COUNTS = {name: st.integers(1, 8) for name in ("tool_calls", "identical_calls")}
TOKENS = {name: st.integers(1, 900) for name in ("input_tokens", "output_tokens", "total_tokens")}
BOUNDS = st.fixed_dictionaries(
    {"steps": st.none() | st.integers(1, 8)},
    optional={
        **COUNTS,
        **TOKENS,
        "cost_usd": st.sampled_from([0.0001, 0.01]),
        "timeout": st.sampled_from([timedelta(seconds=5), timedelta(hours=3)]),
        "per_tool": TOOLS,
    },
)
GRANTS = st.fixed_dictionaries(
    {"steps": st.integers(1, 9)}, optional={"total_tokens": st.integers(1, 999), "per_tool": TOOLS}
)
LEDGERS = st.builds(
    Ledger,
    usage=st.builds(Usage, input_tokens=st.integers(0, 900), output_tokens=st.integers(0, 99)),
    cost_microusd=st.integers(0, 20_000),
    tool_calls=st.integers(0, 9),
    per_tool=st.fixed_dictionaries({"work": st.integers(0, 5), "pay": st.integers(0, 5)}),
    steps=st.integers(1, 9),
)


def follow(words: str, named: dict[str, Any], pick: int) -> dict[str, Any]:
    """Return what a person grants who reads the refusal; `pick` chooses among alternatives."""
    less = re.findall(r"(\S+)=[^;]+? is (?:less|not more) than what [^(]+\((.+?)\)", words)
    if less:
        return {name: None if bound == "no bound" else value_of(bound) for name, bound in less}
    _, _, wanted = words.partition("raise ")
    assert wanted, words
    granted: dict[str, Any] = {}
    for need in wanted.split(", and "):
        alternatives = re.split(r" or (?!more)", need)
        match = re.match(
            r"(\S+) (?:to more than (.+)|to (\S+) or more|\(now (.+)\))$",
            alternatives[pick % len(alternatives)],
        )
        assert match, need
        name, above, least, now = match.groups()
        assert name not in named, f"{name} was granted as named, and is named again: {words}"
        granted[name] = value_of(least) if least else more_than(value_of(above or now))
    named.update(granted)
    return granted


def value_of(text: str) -> Any:
    """Return a value as a refusal writes it."""
    if ":" in text:
        hours, minutes, seconds = text.rpartition(" ")[2].split(":")
        return timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    return None if text == "None" else float(text) if "." in text else int(text)


def more_than(value: Any) -> Any:
    return (
        value + timedelta(seconds=1) if isinstance(value, timedelta) else 99 if value is None else value + 1
    )


def as_limits(granted: dict[str, Any]) -> dict[str, Any]:
    """Return the granted bounds as a request has them."""
    tools = {name.removeprefix("per_tool."): bound for name, bound in granted.items() if "." in name}
    plain = {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in granted.items()
        if "." not in name
    }
    return {**plain, "per_tool": tools} if tools else plain


def grant(closed: RunState, limits: dict[str, Any]) -> None:
    """Extend the run, or the turn of an open session.

    Raises:
        ValueError: it is refused, in words.

    """
    if closed.session is not None and closed.session.closing is None:
        request = ExtendTurn(id="x", limits=limits)
        checked_turn_extension(closed, request, LATER, program_for, {})
        return
    asked = ExtendRequest(origin=RunOrigin(workflow_id="x", execution_id="y"), limits=limits)
    extension = extension_of(closed, asked, at=LATER, closed_at=NOW)
    extend(program_of(closed), closed, extension, lambda spec: program_of(replace(closed, spec=spec)))


@dataclass(frozen=True)
class Case:
    """A run that a limit has ended, and somebody who grants more without knowing what is short."""

    reason: StopReason
    bounds: dict[str, Any]
    whole: dict[str, Any]
    """Bounds of the session, or of the team."""
    ledger: Ledger
    identical: int
    first: dict[str, Any]
    picks: list[int]
    node_timeout: timedelta | None


PICKS = st.lists(st.integers(0, 9), min_size=MOST_ROUNDS, max_size=MOST_ROUNDS)


def run_of(case: Case) -> AgentState:
    state = begun(limits=Limits(**case.bounds))
    state = replace(state, ledger=case.ledger, step=replace(state.step, identical={"x": case.identical}))
    return replace(state, end=End(stop_reason=case.reason))


def session_of(case: Case) -> tuple[AgentState, Session]:
    run = run_of(case)
    request = SessionRequest(agent="a", session_limits=Limits(**case.whole))
    opened = SessionProgram(program_for(run.spec)).open(request, NOW, Origin(id="x"))
    assert isinstance(opened, AgentState)
    assert opened.session is not None
    return replace(opened, ledger=case.ledger, step=run.step), opened.session


def cases(reasons: list[StopReason]) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        reason=st.sampled_from(reasons),
        bounds=BOUNDS,
        whole=BOUNDS,
        ledger=LEDGERS,
        identical=st.integers(0, 5),
        first=GRANTS,
        picks=PICKS,
        node_timeout=st.sampled_from([None, timedelta(seconds=2), timedelta(hours=2)]),
    )


def is_possible(case: Case, bounds: dict[str, Any]) -> bool:
    return any(bounds.get(name) for name in FIELDS_BY_REASON[case.reason])


def extended_by_following(closed: RunState, case: Case) -> None:
    """Extend the run or turn, with a grant that follows its refusals."""
    granted, named = flat(case.first), dict[str, Any]()
    said: list[str] = []
    for pick in case.picks:
        try:
            grant(closed, as_limits(granted))
        except ValueError as error:
            said.append(str(error))
            if "the session's own limit" in said[-1]:
                return  # it says that nothing helps
            for name, value in follow(said[-1], named, pick).items():
                granted[name] = value
                if value is None:
                    del granted[name]
        else:
            return
    raise AssertionError(said)


@examples(60)
@given(cases(IN_AGENTS))
def test_refusal_of_run_helps(case: Case) -> None:
    """Whatever limit has ended a run: granting what its refusals name lets it go on."""
    assume(is_possible(case, case.bounds))
    extended_by_following(run_of(case), case)


@examples(60)
@given(cases(IN_AGENTS))
def test_refusal_of_turn_helps(case: Case) -> None:
    """Whichever limit has ended a turn, its own or the session's: granting what its refusals name helps."""
    state, session = session_of(case)
    reply = TurnReply(turn=1, stop_reason=case.reason)
    session = replace(session, turn=1, answered=(AnsweredTurn(ids=("1",), reply=reply),))
    extended_by_following(replace(state, session=session), case)


@examples(40)
@given(cases(IN_AGENTS))
def test_refusal_of_session_helps(case: Case) -> None:
    """Whichever limit has closed a session: granting what its refusals name opens it."""
    assume(is_possible(case, case.whole))
    state, session = session_of(case)
    end = End(stop_reason=case.reason)
    extended_by_following(replace(state, session=replace(session, closing=case.reason), end=end), case)


@examples(60)
@given(cases(list(FIELDS_BY_REASON)), st.sampled_from(["swarm", "graph"]))
def test_refusal_of_team_helps(case: Case, kind: str) -> None:
    """Whatever limit has ended a team, its own or a node's: granting what its refusals name lets it go on."""
    own, team = ({n: b for n, b in x.items() if n != "cost_usd"} for x in (case.bounds, case.whole))
    agent = Agent(name="a", model="scripted:x", tools=[work, pay], limits=Limits(**own))
    member: Swarm | Graph
    if kind == "swarm":
        other = Agent(name="b", model="scripted:x")
        member = Swarm(name="team", agents=[agent, other], limits=SwarmLimits(**team))
    else:
        node = Node(agent, timeout=case.node_timeout)
        member = Graph(name="team", nodes={"a": node}, entry="a", limits=GraphLimits(**team))
    assume(hasattr(member.limits, FIELDS_BY_REASON[case.reason][0]))
    extended_by_following(cut_short(member, case), case)


def cut_short(member: Swarm | Graph, case: Case) -> TeamState:
    resolved = resolve_member(member)
    program = program_for(resolved.spec)
    assert isinstance(program, TeamProgram)
    request = RunRequest(agent="team", prompt="go")
    state = program.initial(request, NOW, Origin(id="x", members=resolved.members))
    start = program.startable(state)[0]
    result = NodeResult(
        key=start.key, node="a", kind="agent", state="done", stop_reason=case.reason, steps=case.ledger.steps
    )
    cut = Cut(progress=state.progress, nodes=(start,))
    end = End(stop_reason=case.reason)
    return replace(state, ledger=case.ledger, cut=cut, results=(result,), end=end)


def test_least_value_leaves_room_for_the_note() -> None:
    """The note by which the model learns what was granted is longer than that of a grant that changes nothing."""
    case = Case(
        reason="token_budget",
        bounds={"steps": None, "input_tokens": 276},
        whole={},
        ledger=Ledger(steps=1),
        identical=0,
        first={},
        picks=[0, 0],
        node_timeout=None,
    )
    extended_by_following(run_of(case), case)


@pytest.mark.parametrize("reason", ["end_turn", "stopped", "error", "max_tokens", "context_overflow", "idle"])
def test_other_ends_name_no_bound(reason: StopReason) -> None:
    """A run that no limit has ended is refused without naming a bound."""
    with pytest.raises(ValueError, match="the run has ended with") as refused:
        grant(replace(begun(), end=End(stop_reason=reason)), {"steps": 99})
    assert "raise" not in str(refused.value)
