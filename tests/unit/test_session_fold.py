"""Turns, without a server: what becomes of messages, replies and limits, whatever happens when."""

import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ErrorKind
from perdure.limits import Limits
from perdure.messages import Message, Usage
from perdure.model import ModelConfig
from perdure.wire.effects import ModelFailure
from perdure.wire.requests import SessionRequest, WhenBusy
from perdure.wire.results import TurnReply, UpgradeRecord
from perdure.wire.spec import ModelSpec
from perdure.workflows.engine import session as turns
from perdure.workflows.engine.agent import AgentProgram
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.commands import (
    CallModel,
    CallTools,
    CancelPending,
    CloseTurn,
    Command,
    Finish,
    MoveWindow,
    OpenTurn,
    Wait,
)
from perdure.workflows.engine.events import (
    ApprovalResolved,
    CallReturned,
    CallsStarted,
    EndRequested,
    Event,
    GraceExpired,
    IdleChecked,
    MessageSent,
    ModelFailed,
    ModelSwitched,
    Paused,
    Resumed,
    Said,
    StepBegan,
    TurnBegan,
    TurnEnded,
    TurnInterrupted,
    Upgraded,
    WindowMoved,
)
from perdure.workflows.engine.past import NextAgent
from perdure.workflows.engine.session import SessionProgram, is_pending, reply_to, session_of
from perdure.workflows.engine.state import AgentState, Origin, Utterance
from perdure.workflows.engine.unsent import send_again
from tests.unit.runs import (
    NOW,
    PRICE,
    assert_well_formed,
    call,
    program_of,
    reply,
    result,
    spec_of,
    status_report,
)

SECOND = timedelta(seconds=1)


def fold(state: AgentState, event: Event) -> AgentState:
    after = program_of(state).fold(state, event)
    assert isinstance(after, AgentState)
    return after


def decide(state: AgentState) -> Command:
    return program_of(state).decide(state)


def opened(request: dict[str, Any] | None = None, **spec: Any) -> AgentState:
    asked = SessionRequest.model_validate({"agent": "a", **(request or {})})
    state = SessionProgram(AgentProgram(spec_of(**spec))).open(asked, NOW, Origin())
    assert isinstance(state, AgentState)
    return state


def say(
    state: AgentState,
    message_id: str,
    text: str = "hi",
    when_busy: WhenBusy = "queue",
    call_id: str | None = None,
) -> AgentState:
    utterance = Utterance(id=message_id, message=Message.user(text))
    return fold(state, Said(utterance=utterance, when_busy=when_busy, call_id=call_id))


def go(state: AgentState) -> AgentState:
    """Carry out turns' own commands, until something of the loop is next."""
    while True:
        match decide(state):
            case OpenTurn():
                state = fold(state, TurnBegan(at=NOW))
            case CloseTurn() as command:
                state = fold(state, TurnEnded(end=command.end, at=NOW))
            case MoveWindow() as command:
                state = fold(state, WindowMoved(start=command.start))
            case _:
                return state


def asked(state: AgentState) -> AgentState:
    state = go(state)
    assert isinstance(decide(state), CallModel)
    return fold(state, StepBegan())


def answered(state: AgentState, *calls: Any, **more: Any) -> AgentState:
    state = asked(state)
    return go(fold(state, reply(state, *calls, **more)))


def replied(state: AgentState, message_id: str) -> TurnReply:
    found = reply_to(state, message_id)
    assert found is not None
    return found


def test_a_turn_ends_where_a_run_would() -> None:
    state = answered(say(opened(), "m1", "hello"), text="hi there")
    assert decide(state) == Wait()
    said = replied(state, "m1")
    assert (said.turn, said.text, said.output, said.stop_reason) == (1, "hi there", "hi there", "end_turn")
    assert [message.text for message in state.messages] == ["hello", "hi there"]
    assert status_report(state).status == "idle"


def test_a_message_known_in_any_place_says_nothing_new() -> None:
    state = say(say(opened(), "queued"), "queued")
    assert len(session_of(state).queue) == 1
    state = say(asked(state), "queued")
    assert session_of(state).queue == ()
    state = say(say(state, "steer", when_busy="steer"), "steer")
    assert len(state.inbox.messages) == 1
    state = answered(fold(state, reply(state, text="done")), text="done again")
    assert say(state, "queued") == say(state, "steer") == state


def test_what_steers_a_turn_that_ends_unread_has_the_next_turn() -> None:
    state = asked(say(opened(), "m1"))
    state = say(say(state, "m2"), "m3", "steer", when_busy="steer")
    state = go(fold(fold(state, TurnInterrupted()), reply(state, text="so far", stop="cancelled")))
    assert replied(state, "m1").stop_reason == "stopped"
    assert session_of(state).ids == ("m3",)
    assert [one.id for one in session_of(state).queue] == ["m2"]
    assert state.inbox.messages == ()


def test_answer_belongs_to_the_turn_that_asks() -> None:
    """An answer is no turn of its own, and the questions beside it still wait."""
    asks = [call("ask_person", question=which) for which in ("Which?", "When?")]
    state = answered(say(opened(), "m1"), *asks)
    state = say(say(state, "m2", "noon", call_id="call-1-2"), "m3", "the red one", call_id="call-1-1")
    assert [result.text for result in state.messages[-1].tool_results] == ["the red one", "noon"]
    state = answered(state, text="thanks")
    assert [replied(state, name).turn for name in ("m1", "m2", "m3")] == [1, 1, 1]


def test_late_relay_belongs_to_its_turn() -> None:
    """The run below has the answer, and its turn is over before the session hears so: the reply is that turn's."""
    state = answered(say(opened(), "m1"), text="done")
    state = asked(say(state, "m2"))
    utterance = Utterance(id="answer", message=Message.user("the red one"))
    state = fold(state, Said(utterance=utterance, delivered=True, turn=1))
    assert replied(state, "answer").turn == 1
    assert session_of(state).queue == ()
    state = fold(state, Said(utterance=replace(utterance, id="other"), delivered=True, turn=2))
    state = go(fold(state, reply(state, text="two")))
    assert [replied(state, name).turn for name in ("m2", "other")] == [2, 2]


def test_answer_to_a_closed_question_is_a_message() -> None:
    """A question that has ended by the time takes no answer: the words get a turn of their own, or steer this one."""
    state = asked(say(opened(), "m1"))
    state = say(say(state, "m2", call_id="call-1-1"), "m3", when_busy="steer", call_id="call-1-1")
    assert [one.id for one in session_of(state).queue] == ["m2"]
    assert [one.id for one in session_of(state).unread] == ["m3"]


def test_a_question_is_answered_by_what_steers() -> None:
    state = answered(say(opened(), "m1"), call("ask_person", question="Which?"))
    state = say(state, "m2", "the red one", when_busy="steer", call_id="call-1-1")
    assert state.messages[-1].tool_results[0].text == "the red one"
    state = answered(state, text="thanks")
    assert replied(state, "m2").turn == replied(state, "m1").turn == 1


def test_send_begins_a_turn_when_idle_and_steers_one_that_goes_on() -> None:
    state = go(fold(opened(), MessageSent(message=Message.user("hello"))))
    assert session_of(state).turn_is_open
    state = fold(state, MessageSent(message=Message.user("more"), id="u1"))
    assert [message.text for message in state.inbox.messages] == ["more"]


def test_limits_of_a_turn_are_counted_from_its_start() -> None:
    limits = Limits(steps=2, tool_calls=1, per_tool={"work": 1}, total_tokens=10_000)
    state = say(say(opened(limits=limits), "m1"), "m2")
    for name in ("m1", "m2"):
        state = answered(state, call("work"))
        step = state.ledger.steps
        state = fold(state, CallsStarted(ids=(f"call-{step}-1",)))
        state = answered(fold(state, CallReturned(result=result(f"call-{step}-1"))), call("work"))
        assert replied(state, name).stop_reason == "max_tool_calls"
        assert (replied(state, name).steps, replied(state, name).tool_calls) == (2, 1)


def test_limits_of_a_session_end_it_after_the_reply() -> None:
    state = say(opened({"session_limits": {"steps": 2}}), "m1")
    state = answered(state, text="one")
    assert decide(state) == Wait()
    state = answered(say(state, "m2"), text="two")
    assert replied(state, "m2").text == "two"
    ending = decide(state)
    assert isinstance(ending, Finish)
    assert (ending.end.stop_reason, ending.end.output) == ("max_steps", "two")


def test_what_a_session_limit_leaves_out_is_not_bounded() -> None:
    assert session_of(opened({"session_limits": {"cost_usd": 1}})).limits.steps is None


def test_a_failed_turn_has_no_words_of_another() -> None:
    state = answered(say(opened(on_failure="fail"), "m1"), text="good")
    state = asked(say(state, "m2"))
    from perdure.wire.effects import ModelFailure

    state = go(fold(state, ModelFailed(failure=ModelFailure(kind="bad_request", message="no"))))
    failed = replied(state, "m2")
    assert failed.error is not None
    assert (failed.error.kind, failed.text, failed.stop_reason) == ("bad_request", "", "error")
    assert replied(answered(say(state, "m3"), text="on"), "m3").text == "on"


def test_it_is_idle_only_with_nothing_to_do_for_long_enough() -> None:
    state = opened({"max_idle": "PT10S"})
    assert session_of(fold(state, IdleChecked(at=NOW + 9 * SECOND))).closing is None
    assert session_of(fold(say(state, "m"), IdleChecked(at=NOW + 11 * SECOND))).closing is None
    over = fold(state, IdleChecked(at=NOW + 10 * SECOND))
    ending = decide(over)
    assert isinstance(ending, Finish)
    assert ending.end.stop_reason == "idle"


def test_a_turns_timer_is_no_concern_of_another_turn() -> None:
    state = asked(say(opened(), "m1"))
    assert fold(state, TurnInterrupted(turn=7, reason="deadline")) == state
    assert fold(state, TurnInterrupted(turn=1, reason="deadline")).ending == "deadline"


def test_a_long_answer_is_kept_once() -> None:
    long = "x" * 5000
    state = answered(say(opened(), "m1"), text=long)
    state = answered(say(state, "m2"), text="short")
    assert session_of(state).answered[0].reply.text == ""
    assert (replied(state, "m1").text, replied(state, "m1").output) == (long, long)


def test_replies_that_are_kept_are_bounded() -> None:
    state = opened()
    for n in range(turns.MOST_ANSWERED + 10):
        state = answered(say(state, f"m{n}"), text="ok")
    assert len(session_of(state).answered) == turns.MOST_ANSWERED
    assert reply_to(state, "m0") is None
    assert replied(state, "m500").turn == 501


def test_a_session_is_carried_over_whole() -> None:
    state = say(asked(say(opened({"session_limits": {"steps": 9}}), "m1")), "m2", when_busy="steer")
    carried, *chunks = pack(program_of(state), state, HistoryFormat())
    assert unpack(program_of(state), carried, chunks) == (state, HistoryFormat())


Action = tuple[str, int]

OFTEN = ["say", "steer", "words", "words", "interrupt", "work", "start", "return"]
SELDOM = ["again", "ask", "empty", "fail", "allow", "pause", "resume", "grace", "time out", "carry", "noise"]
actions = st.lists(
    st.tuples(
        st.sampled_from([*OFTEN, *OFTEN, *OFTEN, *SELDOM]),
        st.integers(min_value=0, max_value=5),
    ),
    min_size=12,
    max_size=60,
)


class Play:
    """A session, and what is expected of it."""

    def __init__(self) -> None:
        self.state = opened({"max_idle": None}, limits=Limits(steps=4, tool_calls=6))
        self.said: list[str] = []
        self.replies: dict[str, TurnReply] = {}

    def do(self, action: Action) -> None:
        self.state = self._after(action)
        self.state = go(self.state)
        command = decide(self.state)
        if isinstance(command, CallModel):
            self.state = fold(self.state, StepBegan())
        self.check()

    def _after(self, action: Action) -> AgentState:  # noqa: C901 - one case a action
        state, (what, n) = self.state, action
        command = decide(state)
        match what:
            case "say" | "steer":
                self.said.append(f"m{len(self.said)}")
                return say(state, self.said[-1], when_busy="steer" if what == "steer" else "queue")
            case "again" if self.said:
                return say(state, self.said[n % len(self.said)], when_busy="steer" if n % 2 else "queue")
            case "work" | "ask" | "words" | "empty" if state.step.asking_model:
                calls = {"work": [call("work"), call("pay")], "ask": [call("ask_person", question="?")]}
                usage = Usage(input_tokens=5, output_tokens=5)
                return fold(state, reply(state, *calls.get(what, []), text="ok " * n, usage=usage))
            case "fail" if state.step.asking_model:
                from perdure.wire.effects import ModelFailure

                kind = "authentication" if n % 2 else "bad_request"
                return fold(state, ModelFailed(failure=ModelFailure(kind=kind, message="no")))
            case "start" if isinstance(command, CallTools):
                return fold(state, CallsStarted(ids=tuple(one.call.id for one in command.calls)))
            case "return" if state.step.calls:
                running = [one.call for one in state.step.calls if one.state == "running"]
                return fold(state, CallReturned(result=result(running[0].id))) if running else state
            case "allow" if state.step.calls:
                from perdure.wire.requests import ApprovalDecision

                return fold(
                    state,
                    ApprovalResolved(
                        decision=ApprovalDecision(call_id=state.step.calls[-1].call.id, allow=n > 2)
                    ),
                )
            case "grace" if isinstance(command, CancelPending):
                return fold(state, GraceExpired())
            case "interrupt":
                return fold(state, TurnInterrupted())
            case "time out":
                return fold(state, TurnInterrupted(turn=session_of(state).turn - n % 2, reason="deadline"))
            case "pause":
                return fold(state, Paused())
            case "resume":
                return fold(state, Resumed())
            case "carry" if not state.is_busy:
                carried, *chunks = pack(program_of(state), state, HistoryFormat())
                return replace(unpack(program_of(state), carried, chunks)[0])  # type: ignore[return-value]
            case "noise":
                return fold(state, CallReturned(result=result(f"call-{n}-1")))
            case _:
                return state

    def check(self) -> None:
        """Each message in one place; a reply, once given, stays; limits hold."""
        session = session_of(self.state)
        waiting = [*session.ids, *(one.id for one in (*session.unread, *session.queue))]
        given = [one for turn in session.answered for one in turn.ids]
        assert sorted([*waiting, *given]) == sorted(self.said)
        for message_id in given:
            found = replied(self.state, message_id)
            assert self.replies.setdefault(message_id, found) == found
            assert not is_pending(self.state, message_id)
        assert all(turn.reply.steps <= 4 for turn in session.answered)
        assert len(self.state.inbox.messages) == len(session.unread)
        if isinstance(decide(self.state), CallModel):
            assert_well_formed(self.state.messages)


@given(actions)
def test_no_message_is_lost_or_answered_twice_whatever_happens(course: list[Action]) -> None:
    play = Play()
    for action in course:
        play.do(action)
    spoken = [message for message in play.state.messages if message.role == "user"]
    answers = session_of(play.state).answered
    assert [one.reply.turn for one in answers] == list(range(1, len(answers) + 1))
    assert len(spoken) <= len(play.said)


@given(actions)
def test_every_message_is_answered_once_the_trouble_is_over(course: list[Action]) -> None:
    play = Play()
    for action in course:
        play.do(action)
    for _ in range(1000):
        if not any(is_pending(play.state, message_id) for message_id in play.said):
            break
        for mending in ("resume", "allow", "start", "return", "words", "grace", "interrupt"):
            play.do((mending, 3))
    assert all(reply_to(play.state, message_id) for message_id in play.said)
    assert_well_formed(play.state.messages)


@given(actions, st.sampled_from(["stopped", "cancelled", "deadline"]))
def test_a_session_that_must_end_ends(course: list[Action], reason: Any) -> None:
    play = Play()
    for action in course:
        play.do(action)
    play.state = fold(play.state, EndRequested(reason=reason))
    for _ in range(20):
        if isinstance(decide(play.state), Finish):
            break
        play.do(("grace", 0))
    ending = decide(play.state)
    assert isinstance(ending, Finish)
    assert ending.end.stop_reason == reason
    assert not session_of(play.state).turn_is_open


def test_upgrade_to_fewer_models() -> None:
    """A model that the new version does not have is not asked how much it can read, even by a late event."""
    first, second = (ModelSpec(config=ModelConfig(name=f"scripted:{name}"), price=PRICE) for name in "xy")
    state = answered(say(opened(models=(first, second)), "m1"), call("work"))
    state = fold(fold(state, CallsStarted(ids=("call-1-1",))), CallReturned(result=result("call-1-1")))
    state = fold(answered(state, text="hi"), ModelSwitched(model=1))
    record = UpgradeRecord(at=NOW, before="old", after="new")
    state = fold(state, Upgraded(agent=NextAgent(spec=spec_of(models=(first,)), record=record)))
    assert replied(answered(say(state, "m2"), text="hello"), "m2").output == "hello"


def test_closed_session_names_a_message_without_answer() -> None:
    state = asked(say(opened(), "m1", "hello"))
    failure = ModelFailure(kind="invalid_request", message="no")
    state = go(fold(state, ModelFailed(failure=failure, at=NOW)))
    command = decide(fold(state, EndRequested(reason="stopped")))
    assert isinstance(command, Finish), command
    assert program_of(state).result(state, command.end).missing == ["message not read: hello"]


HUGE = Usage(input_tokens=10**17, output_tokens=10**17)


def test_huge_numbers_hold_up_no_turn() -> None:
    """A limit that is meant as none, and a provider's senseless count, are taken as the largest amounts."""
    largest = dict.fromkeys(("tool_calls", "input_tokens", "output_tokens", "total_tokens"), sys.maxsize)
    limits = Limits(**largest, per_tool={"work": 10**30}, cost_usd=1e9)
    state = opened(limits=limits)
    for number, usage in enumerate([Usage(input_tokens=5, output_tokens=5), HUGE, Usage(input_tokens=5)]):
        state = say(state, f"m{number}")
        state = go(state)
        if isinstance(decide(state), CallModel):
            state = fold(state, StepBegan())
            state = go(fold(state, reply(state, text="hi", usage=usage)))
    assert [replied(state, f"m{number}").stop_reason for number in range(2)] == ["end_turn", "end_turn"]
    assert status_report(state).usage.total_tokens > 10**17


LONG = "word " * 20_000


@pytest.mark.parametrize(
    ("end", "limits"),
    [
        ("overflow", Limits()),
        ("refused", Limits()),
        ("too large", Limits()),
        ("tokens", Limits(input_tokens=20_000)),
        ("money", Limits(cost_usd=0.02)),
    ],
)
def test_unsendable_message_ends_one_turn(end: str, limits: Limits) -> None:
    """A message with which no request can be sent ends its turn, which names it. Later turns have words instead."""
    state = answered(say(opened(limits=limits), "m1", "hello"), text="hi")
    state = go(say(state, "m2", LONG))
    if end not in ("tokens", "money"):
        kinds: dict[str, ErrorKind] = {"refused": "bad_request", "too large": "too_large"}
        failure = ModelFailure(kind=kinds.get(end, "context_overflow"), message="no")
        while session_of(state).turn_is_open:
            state = go(fold(asked(state), ModelFailed(failure=failure, at=NOW)))
    reply_2 = replied(state, "m2")
    assert (reply_2.stop_reason, len(reply_2.missing)) != ("end_turn", 0)
    assert reply_2.missing[0].startswith("message not read: word word")
    state = answered(say(state, "m3", "still there?"), text="yes")
    assert (replied(state, "m3").text, replied(state, "m3").missing) == ("yes", [])
    assert state.messages[2].text == LONG
    shown = [message.text for message in state.transcript.visible]
    assert shown[-2:] == ["still there?", "yes"]
    assert "could not be sent" in shown[-3]
    assert shown[0] == "hello" or end == "overflow"  # which has moved the window first


def test_extended_turn_sends_its_messages() -> None:
    """What a turn's limit was too small for is sent once the turn has been given more."""
    state = go(say(opened(limits=Limits(input_tokens=20_000)), "m1", LONG))
    assert replied(state, "m1").stop_reason == "token_budget"
    assert "could not be sent" in state.transcript.visible[0].text
    assert "could not be sent" not in send_again(state).transcript.visible[0].text
