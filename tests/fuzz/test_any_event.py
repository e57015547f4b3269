"""No event comes too early or too late: whatever a run is doing, folding it makes a state that can go on."""

from datetime import timedelta
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import RULES
from perdure.hooks import HookPoint
from perdure.limits import Limits
from perdure.messages import Message, Usage
from perdure.wire.effects import CheckedCall, HookOutcome, ModelFailure
from perdure.wire.requests import ApprovalDecision, ExtendTurn
from perdure.wire.results import RunResult, UpgradeRecord
from perdure.wire.tree import Amount, BudgetRequest, Grant, Report
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.events import (
    ApprovalResolved,
    BudgetGranted,
    CallReturned,
    ChildEnded,
    ChildReported,
    EndRequested,
    Event,
    GraceExpired,
    HooksAnswered,
    HooksFailed,
    HooksStarted,
    IdleChecked,
    MessageSent,
    ModelFailed,
    Paused,
    Redriven,
    Resumed,
    RetryDue,
    Said,
    TurnExtended,
    TurnInterrupted,
    Upgraded,
)
from perdure.workflows.engine.past import NextAgent, TurnExtension
from perdure.workflows.engine.state import AgentState, End, Utterance
from tests.unit.runs import NOW, call, details, reply, result, result_of, spec_of, status_report

from . import casts
from .depth import examples
from .test_trees import COURSE, LIMITS, Trees
from .world import Shell

KEYS = ["worker-1-1", "helper-1-1", "helper-2-2", "minion-1-1", "first-1", "draft-1", "debate-1", "nobody-9"]
CALL_IDS = ["call-1-1", "call-1-2", "call-2-1", "call-3-1", "call-9-9"]
some_amounts = st.builds(Amount, tool_calls=st.integers(0, 5), input_tokens=st.none() | st.integers(0, 500))
amounts = st.none() | some_amounts
reports = st.builds(
    Report,
    key=st.sampled_from(KEYS),
    request=st.none() | st.builds(BudgetRequest, minimum=some_amounts, preferred=some_amounts),
    idle=st.booleans(),
    returned=amounts,
    final=st.none() | st.just(RunResult(agent="x", stop_reason="cancelled", output="last words")),
)
outcomes: st.SearchStrategy[RunResult] = st.builds(
    RunResult,
    agent=st.just("x"),
    output=st.sampled_from(["said", None, {"a": 1}]),
    stop_reason=st.sampled_from(["end_turn", "cancelled", "handoff", "max_steps", "node_timeout"]),
    usage=st.builds(Usage, input_tokens=st.integers(0, 50), estimated=st.booleans()),
    cost_microusd=st.none() | st.integers(0, 99),
)
UPGRADE = UpgradeRecord(at=NOW, by="ann", before="old", after="new")
MORE_FOR_TURN = TurnExtension(request=ExtendTurn(id="more", limits={"steps": 99}), ended="max_steps")
NEXT_AGENT = NextAgent(spec=spec_of(instructions="Go on."), record=UPGRADE)
NEXT_GUARDED = NextAgent(spec=spec_of(hooks=get_args(HookPoint)), record=UPGRADE)
POINTS: tuple[HookPoint, ...] = get_args(HookPoint)
points: st.SearchStrategy[HookPoint] = st.sampled_from(POINTS)
checked_calls = st.builds(
    CheckedCall,
    call_id=st.sampled_from(CALL_IDS),
    deny=st.sampled_from([None, "no"]),
    ask=st.sampled_from([None, "why"]),
    end_turn=st.sampled_from([None, "enough"]),
    text=st.sampled_from([None, "other"]),
    arguments=st.sampled_from([None, {"n": 1}]),
)
hook_outcomes = st.builds(
    HookOutcome,
    calls=st.lists(checked_calls, max_size=2),
    end_turn=st.sampled_from([None, "enough"]),
    is_replaced=st.booleans(),
)
REASONS: Any = st.sampled_from(["stopped", "cancelled", "deadline", "node_timeout"])
STOPS: Any = ["end_turn", "tool_calls", "max_tokens", "context_overflow", "refusal", "cancelled"]
events: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        CallReturned,
        result=st.sampled_from(CALL_IDS).map(lambda id_: result(id_, is_error=id_ > "call-2")),
        arguments=st.sampled_from([None, {"n": 1}]),
        ask=st.sampled_from([None, "why"]),
        end_turn=st.sampled_from([None, "enough"]),
    ),
    st.builds(
        ModelFailed,
        failure=st.builds(
            ModelFailure,
            kind=st.sampled_from([*RULES, "stale", "x"]),
            message=st.just("no"),
            retry_in=st.none() | st.timedeltas(timedelta(), timedelta(hours=3)),
        ),
        at=st.none() | st.just(NOW),
    ),
    st.just(TurnExtended(extension=MORE_FOR_TURN)),
    st.builds(Upgraded, agent=st.sampled_from([NEXT_AGENT, NEXT_GUARDED])),
    st.builds(RetryDue, at=st.sampled_from([NOW, NOW + timedelta(hours=1), NOW + timedelta(days=1)])),
    st.builds(
        Redriven,
        spec=st.none() | st.sampled_from([spec_of(instructions="Go on."), spec_of(hooks=POINTS)]),
        limits=st.none() | st.builds(Limits, steps=st.integers(1, 9), tool_calls=st.integers(0, 9)),
    ),
    st.sampled_from(STOPS),
    st.builds(
        MessageSent,
        message=st.just(Message.user("hi")),
        id=st.sampled_from([None, "a", "b"]),
        call_id=st.none() | st.sampled_from(CALL_IDS),
    ),
    st.builds(
        Said,
        utterance=st.sampled_from("abc").map(lambda one: Utterance(id=one, message=Message.user("hi"))),
        when_busy=st.sampled_from(["queue", "steer"]),
        delivered=st.booleans(),
        turn=st.integers(0, 2),
        call_id=st.none() | st.sampled_from(CALL_IDS),
    ),
    st.builds(
        ApprovalResolved,
        decision=st.builds(ApprovalDecision, call_id=st.sampled_from(CALL_IDS), allow=st.booleans()),
    ),
    st.sampled_from([Paused(), Resumed(), GraceExpired(), IdleChecked(at=NOW)]),
    st.builds(EndRequested, reason=REASONS),
    st.builds(TurnInterrupted, turn=st.none() | st.integers(0, 3), reason=REASONS),
    st.builds(
        ChildEnded,
        key=st.sampled_from(KEYS),
        outcome=outcomes,
        at=st.just(NOW),
        result=st.none() | st.sampled_from(CALL_IDS).map(result),
    ),
    st.builds(
        HooksStarted,
        point=points,
        ids=st.lists(st.sampled_from(CALL_IDS), max_size=2).map(tuple),
        end=st.none()
        | st.sampled_from([End(stop_reason="end_turn", output="x"), End(stop_reason="max_steps")]),
    ),
    st.builds(HooksAnswered, point=points, outcome=hook_outcomes),
    st.builds(HooksFailed, point=points, message=st.just("no"), at=st.just(NOW)),
    st.builds(ChildReported, report=reports),
    st.builds(BudgetGranted, grant=st.builds(Grant, amount=amounts)),
)
casts_of = st.sampled_from(["family", "swarm", "graph", "session"])


class Play(Trees):
    """Trees that nobody checks to the end."""

    def finally_closed(self) -> None:
        pass


def _root(kind: str, limits: Any, course: tuple[int, int]) -> Shell:
    """The root of a tree, somewhere on its way."""
    play = Play()
    session = kind == "session"
    member = getattr(casts, "family" if session else kind)(limits)
    play.begun(casts.world_of(member, {}, session=session), course)
    return play.root


def _after(shell: Shell, event: Event | str) -> Any:
    """A late answer of a model is one of these words: how it stopped."""
    if not isinstance(event, str):
        return shell.folded(event)
    if not isinstance(shell.state, AgentState):
        return shell.state
    asked = [call("work")] if event == "tool_calls" and not shell.state.step.calls else []
    return shell.folded(reply(shell.state, *asked, text="late", stop=event))  # type: ignore[arg-type]


@examples(150)
@given(kind=casts_of, limits=LIMITS, course=COURSE, coming=st.lists(events, min_size=1, max_size=8))
def test_any_event_leaves_valid_state(kind: str, limits: Any, course: Any, coming: list[Any]) -> None:
    """Any event in any state leaves a state that has a status and a next command."""
    shell = _root(kind, limits, course)
    for event in coming:
        before = repr(shell.state)
        after = _after(shell, event)
        assert repr(shell.state) == before, "a state is followed by another, never changed"
        shell.state = after
        assert shell.decided() == shell.decided()
        assert status_report(after).status
        assert details(after)
        result_of(after, End(stop_reason="stopped"))
        carried = pack(shell.program, after, HistoryFormat())
        assert unpack(shell.program, carried[0], carried[1:])[0] == after
