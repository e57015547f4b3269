"""decide and fold: whatever happens to a run, in whatever order, what is promised about it holds."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perdure.context import SlidingWindow, Summary
from perdure.errors import RULES
from perdure.limits import Limits
from perdure.messages import Image, Message, ReplyMeta, Text, ToolCall, Usage, estimated_tokens
from perdure.model import ModelConfig, ModelStop
from perdure.policy import Policy, Rule
from perdure.wire.effects import CUT_CALL, ModelFailure, ModelOutcome
from perdure.wire.requests import ApprovalDecision, RunRequest
from perdure.wire.results import ENDED, Status, StopReason
from perdure.wire.spec import ModelSpec
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.commands import (
    CallModel,
    CallTools,
    CancelPending,
    Finish,
    MoveWindow,
    Summarize,
    Wait,
)
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import (
    ApprovalResolved,
    CallReturned,
    CallsStarted,
    EndRequested,
    Event,
    GraceExpired,
    MessageSent,
    ModelFailed,
    Paused,
    Replied,
    Resumed,
    StepBegan,
    Summarized,
    SummaryBegan,
    WindowMoved,
)
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.input_tokens import next_input_tokens
from perdure.workflows.engine.questions import open_questions
from perdure.workflows.engine.refusals import MOST_COUNTED, count_identical
from perdure.workflows.engine.reply import MOST_STALE_RETRIES
from perdure.workflows.engine.report import status_of
from perdure.workflows.engine.state import AgentState, End, Step
from perdure.workflows.engine.tree import GRACE
from tests.unit.runs import details, program_of, result_of, status_report

from .runs import (
    NOW,
    PRICE,
    answered,
    asked,
    assert_well_formed,
    begun,
    call,
    failed,
    reply,
    result,
)

TYPED = {"type": "object", "properties": {"city": {"type": "string"}}}
CHEAP = ModelSpec(config=ModelConfig(name="scripted:y", max_tokens=300), price=PRICE)
COMMANDS = CallModel | CallTools | MoveWindow | Summarize | CancelPending | Wait | Finish

LIMITS = st.builds(
    Limits,
    steps=st.integers(1, 30),
    tool_calls=st.none() | st.integers(0, 12),
    per_tool=st.sampled_from([{}, {"work": 2}, {"pay": 0, "work": 5}]),
    per_tool_ends=st.booleans(),
    identical_calls=st.none() | st.integers(1, 3),
    input_tokens=st.none() | st.integers(500, 20_000),
    output_tokens=st.none() | st.integers(20, 2_000),
    total_tokens=st.none() | st.integers(500, 20_000),
    cost_usd=st.none() | st.floats(0.0005, 0.05),
)


def _strategy(kind: type[SlidingWindow] | type[Summary], messages: int | None, tokens: int | None) -> Any:
    return kind(messages=messages, tokens=tokens)


WINDOWS: st.SearchStrategy[Any] = st.builds(
    _strategy,
    st.sampled_from([SlidingWindow, Summary]),
    st.none() | st.integers(4, 10),
    st.none() | st.integers(256, 2000),
)
POLICIES = st.sampled_from(
    [
        None,
        Policy(
            rules=(Rule(verdict="deny", tool="single"), Rule(verdict="ask", tool="w*"), Rule(verdict="allow"))
        ),
    ]
)
CALLS = st.builds(
    call,
    st.sampled_from(
        ["work", "single", "pay", "ask_person", "read_result", "read_back", "nobody", "final_answer"]
    ),
    st.none() | st.none() | st.just("does not fit"),
)
STOPS: st.SearchStrategy[ModelStop] = st.sampled_from(
    ["end_turn", "tool_calls", "tool_calls", "tool_calls", "pause_turn", "stop_sequence"]
)
LAST_STOPS: st.SearchStrategy[ModelStop] = st.sampled_from(
    ["max_tokens", "refusal", "guardrail", "context_overflow", "cancelled", "end_turn"]
)
FAILURES = st.sampled_from([*RULES, "stale", "stale", "cancelled", "a kind of tomorrow"])


class Run(RuleBasedStateMachine):
    """Plays the loop: carries out what `decide` says, and lets anything happen in between."""

    @initialize(
        limits=LIMITS,
        window=WINDOWS,
        policy=POLICIES,
        typed=st.booleans(),
        models=st.integers(1, 3),
        on_failure=st.sampled_from(["park", "fail"]),
    )
    def start(  # noqa: PLR0917 - Hypothesis fills them in
        self,
        limits: Limits,
        window: SlidingWindow | Summary,
        policy: Any,
        typed: bool,
        models: int,
        on_failure: str,
    ) -> None:
        self.state = begun(
            limits=limits,
            context=window,
            policy=policy,
            output_schema=TYPED if typed else None,
            models=(CHEAP,) * models,
            on_failure=on_failure,
            tool_concurrency=3,
        )
        self.sent = ["the task"]
        self.granted = 0
        self.budgeted = True
        self.recalled = False
        self.finished: End | None = None
        self.step()

    def fold(self, event: Event) -> None:
        before = self.state
        written = repr(before)
        after = fold(before, event)
        assert repr(before) == written, "a state is never changed, only followed by another"
        assert after.messages[: len(before.messages)] == before.messages, "a transcript only grows"
        assert after.ledger.steps >= before.ledger.steps
        self.state = after

    def step(self) -> None:
        """Carry out commands until there is something to wait for."""
        for _ in range(200):
            command = decide(self.state)
            assert isinstance(command, COMMANDS)
            match command:
                case CallModel():
                    self.check_call(command)
                    self.granted = command.allowance.max_tokens
                    self.fold(StepBegan(clamped_by=command.allowance.limited_by))
                    assert_well_formed(self.state.messages)
                case CallTools():
                    assert not self.state.paused
                    assert command.calls
                    assert all(c.state == "ready" for c in command.calls)
                    self.fold(CallsStarted(ids=tuple(c.call.id for c in command.calls)))
                    running = [c for c in self.state.step.calls if c.state == "running"]
                    assert len(running) <= self.state.spec.tool_concurrency
                    assert sum(c.call.name == "single" for c in running) <= 1
                case MoveWindow():
                    assert command.start > self.state.transcript.window_start
                    self.fold(WindowMoved(start=command.start))
                    assert self.state.messages[self.state.transcript.window_start].role != "tool"
                case Summarize():
                    assert command.stop > self.state.transcript.window_start
                    assert command.allowance.max_tokens > 0
                    self.fold(SummaryBegan(stop=command.stop))
                    assert decide(self.state) == Wait()
                    self.fold(Summarized(failure=ModelFailure(kind="overloaded", message="no")))
                    assert self.state.transcript.window_start == command.stop
                case CancelPending():
                    assert self.state.is_busy
                    if not self.recalled:
                        self.recalled = True
                        return
                    self.fold(GraceExpired())
                case Finish():
                    self.finished = command.end
                    self.state = replace(self.state, end=command.end)
                    return
                case Wait():
                    return
        raise AssertionError("decide and fold go round in circles")

    def check_call(self, command: CallModel) -> None:
        state = self.state
        assert not state.is_busy
        assert not state.paused
        assert not state.step.calls
        assert state.parking.parked is None
        assert state.ending is None
        assert state.end is None
        assert command.allowance.max_tokens > 0
        assert command.allowance.max_tokens <= state.spec.models[state.chain.model].config.max_tokens
        last = "none" if state.spec.output_schema is None else "required"
        assert command.tool_choice == ("auto" if state.step.wrap_up is None else last)

    # What comes back.

    @precondition(lambda self: self.state.step.asking_model)
    @rule(
        calls=st.lists(CALLS, max_size=5),
        stop=STOPS | STOPS | LAST_STOPS,
        text=st.sampled_from(["", "so far"]),
        part=st.floats(0, 1),
        typed=st.booleans(),
        problem=st.booleans(),
    )
    def model_answers(  # noqa: PLR0917 - Hypothesis fills them in
        self, calls: list[ToolCall], stop: ModelStop, text: str, part: float, typed: bool, problem: bool
    ) -> None:
        if stop == "max_tokens" and calls:
            calls = [*calls[:-1], calls[-1].model_copy(update={"problem": CUT_CALL})]
        read = self.state.transcript.context_tokens
        usage = Usage(input_tokens=read, output_tokens=int(self.granted * part))
        output = wrong = None
        if self.state.spec.output_schema is not None and stop in ("end_turn", "tool_calls"):
            output = {"city": "Bonn"} if typed else None
            wrong = None if output or calls else "that does not fit"
        self.fold(reply(self.state, *calls, text=text, stop=stop, usage=usage, output=output, problem=wrong))
        self.step()

    @precondition(lambda self: self.state.step.asking_model)
    @rule(kind=FAILURES, wasted=st.sampled_from([0, 0, 7]))
    def model_fails(self, kind: str, wasted: int) -> None:
        if wasted:
            self.budgeted = False  # what a cut call has cost, nobody could have forbidden
        used = Usage(output_tokens=wasted)
        self.fold(
            ModelFailed(failure=ModelFailure(kind=kind, message="no", wasted=used, wasted_microusd=wasted))
        )
        self.step()

    @precondition(lambda self: any(c.state == "running" for c in self.state.step.calls))
    @rule(data=st.data(), error=st.booleans(), twice=st.booleans())
    def tool_answers(self, data: st.DataObject, error: bool, twice: bool) -> None:
        running = [c.call for c in self.state.step.calls if c.state == "running"]
        done = data.draw(st.sampled_from(running))
        for _ in range(1 + twice):
            self.fold(CallReturned(result=result(done.id, done.name, is_error=error)))
        self.step()

    @rule()
    def a_result_nobody_waits_for_comes(self) -> None:
        before = self.state
        self.fold(CallReturned(result=result("call-0-0")))
        assert self.state == before

    # What people do.

    @precondition(lambda self: self.state.ending is None and self.finished is None)
    @rule(pick=st.integers(0, 99), answers=st.booleans())
    def somebody_speaks(self, pick: int, answers: bool) -> None:
        text = f"message {len(self.sent)}"
        self.sent.append(text)
        # A name that no question has by now, too: then it is an ordinary message.
        names = [question.call_id for question in open_questions(self.state)]
        name = [*names, "call-9-9"][pick % (len(names) + 1)] if answers else None
        self.fold(MessageSent(message=Message.user(text), call_id=name))
        assert [question.call_id for question in open_questions(self.state)] == [
            n for n in names if n != name
        ]
        if name in names:
            found = [call.result for call in self.state.step.calls if call.call.id == name]
            result = (found or [self.state.result_of(str(name))])[0]
            assert result is not None
            assert result.text == text, "an answer reaches its own question"
        self.step()

    @rule(data=st.data(), allow=st.booleans(), edit=st.booleans(), known=st.booleans())
    def somebody_decides(self, data: st.DataObject, allow: bool, edit: bool, known: bool) -> None:
        held = [c.call.id for c in self.state.step.calls if c.state == "asking"]
        which = data.draw(st.sampled_from(held)) if held and known else "call-9-9"
        arguments: Any = {"n": 1} if edit and allow else None
        self.fold(
            ApprovalResolved(
                decision=ApprovalDecision(call_id=which, allow=allow, by="lee", arguments=arguments)
            )
        )
        self.step()

    @rule()
    def somebody_pauses(self) -> None:
        self.fold(Paused())
        self.step()

    @rule()
    def somebody_resumes(self) -> None:
        self.fold(Resumed())
        assert self.state.parking.parked is None
        assert not self.state.paused
        self.step()

    @precondition(lambda self: len(self.state.messages) > 6)
    @rule(reason=st.sampled_from(["stopped", "cancelled", "deadline"]))
    def somebody_ends_it(self, reason: Any) -> None:
        self.fold(EndRequested(reason=reason))
        self.step()

    @precondition(lambda self: self.finished is None and not self.state.is_busy)
    @rule()
    def it_continues_as_new(self) -> None:
        carried = pack(program_of(self.state), self.state, HistoryFormat(layout=2))
        first, *chunks = json.loads(json.dumps(carried))
        again, writing = unpack(program_of(self.state), first, chunks)
        assert isinstance(again, AgentState)
        assert writing == HistoryFormat(layout=2)
        assert again == self.state
        self.state = again

    # What always holds.

    @invariant()
    def limits_are_kept(self) -> None:
        if not hasattr(self, "state"):
            return
        state, limits = self.state, self.state.limits
        assert limits.steps is None or state.ledger.steps <= limits.steps
        assert limits.tool_calls is None or state.ledger.tool_calls <= limits.tool_calls
        for name, most in limits.per_tool.items():
            assert state.ledger.per_tool.get(name, 0) <= most
        if self.budgeted:
            assert limits.output_tokens is None or state.ledger.usage.output_tokens <= limits.output_tokens
            assert limits.input_tokens is None or state.ledger.usage.all_input_tokens <= limits.input_tokens
            assert limits.total_tokens is None or state.ledger.usage.total_tokens <= limits.total_tokens
            assert limits.cost_microusd is None or state.ledger.cost_microusd <= limits.cost_microusd

    @invariant()
    def it_can_be_told_where_it_is(self) -> None:
        if not hasattr(self, "state"):
            return
        status = status_of(self.state)
        assert status in get_args(Status)
        assert (status in ENDED) == (self.state.end is not None)
        report = status_report(self.state)
        assert report.queued == len(self.state.inbox.messages)
        assert details(self.state).startswith(f"**{status}**")

    @invariant()
    def nothing_said_is_lost(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        told = [m.text for m in (*state.messages, *state.inbox.messages) if m.role == "user"]
        told += [r.text for m in state.messages for r in m.tool_results if r.name == "ask_person"]
        told += [c.result.text for c in state.step.calls if c.result and c.call.name == "ask_person"]
        assert [text for text in self.sent if text not in told] == []

    def teardown(self) -> None:
        """A run in which people answer and the world goes on ends; its transcript is whole."""
        if not hasattr(self, "state"):
            return
        for _ in range(500):
            if self.finished is not None:
                break
            self.go_on()
        else:
            raise AssertionError("the run does not end")
        assert_well_formed(self.state.messages)
        end = self.finished
        report = result_of(self.state, end)
        if self.state.spec.output_schema is not None:
            assert report.output in (None, {"city": "Bonn"}), "output of a type is of that type or absent"
        assert (end.failure is None) or end.stop_reason in ("error", "context_overflow")
        assert end.stop_reason != "context_overflow" or end.failure is not None, "the provider's words"

    def go_on(self) -> None:
        state = self.state
        held = [c for c in state.step.calls if c.state == "asking"]
        running = [c for c in state.step.calls if c.state == "running"]
        if state.paused or state.parking.parked is not None:
            self.somebody_resumes()
        elif state.step.asking_model:
            self.fold(reply(state, call("work"), usage=Usage(input_tokens=state.transcript.context_tokens)))
            self.step()
        elif running:
            self.fold(CallReturned(result=result(running[0].call.id, running[0].call.name)))
            self.step()
        elif held and held[0].kind == "person":
            self.fold(MessageSent(message=Message.user("yes"), call_id=held[0].call.id))
            self.step()
        elif held:
            self.fold(ApprovalResolved(decision=ApprovalDecision(call_id=held[0].call.id, allow=True)))
            self.step()
        else:
            raise AssertionError(f"the run waits for nothing anybody could do: {status_of(state)}")


Run.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestAnyRun = Run.TestCase


# One by one: what went wrong once, or is easily got wrong.


def test_a_paused_turn_with_tool_calls_runs_them_so_that_none_stays_unanswered() -> None:
    state = answered(begun(), call("work"), stop="pause_turn")
    assert isinstance(decide(state), CallTools)
    state = fold(state, CallReturned(result=result("call-1-1")))
    assert isinstance(decide(state), CallModel)
    assert_well_formed(state.messages)


def test_a_budget_reserves_what_was_said_and_not_yet_read() -> None:
    state = begun(limits=Limits(total_tokens=3_000))
    assert isinstance(decide(state), CallModel)
    long = Message.user("x" * 20_000)
    state = fold(state, MessageSent(message=long))
    assert next_input_tokens(state) == state.transcript.context_tokens + estimated_tokens(long)
    command = decide(state)
    assert isinstance(command, Finish)
    assert command.end.stop_reason == "token_budget"


def test_a_budget_reserves_what_will_be_read_after_the_window_has_moved() -> None:
    state = begun(limits=Limits(total_tokens=6_000), context=SlidingWindow(tokens=1_000))
    for _ in range(3):
        state = answered(state, call("work"), usage=Usage(input_tokens=100))
        state = fold(state, CallReturned(result=result(state.step.calls[0].call.id, text="x" * 2_400)))
    state = replace(state, transcript=replace(state.transcript, context_tokens=5_900))
    assert isinstance(decide(state), MoveWindow), "not the end: what is left out will not be read"


def test_a_picture_is_not_counted_by_its_bytes() -> None:
    picture = Image(data="A" * 1_000_000)
    state = begun([Text(text="what is this?"), picture], limits=Limits(steps=None, total_tokens=50_000))
    assert isinstance(decide(state), CallModel)
    assert state.transcript.context_tokens < 6_000


def test_an_answer_is_kept_when_no_call_is_left_to_read_what_came_meanwhile() -> None:
    state = asked(begun(limits=Limits(steps=1), output_schema=TYPED))
    state = fold(state, MessageSent(message=Message.user("wait")))
    state = fold(state, reply(state, call("final_answer"), output={"city": "Bonn"}))
    command = decide(state)
    assert command == Finish(end=End(stop_reason="end_turn", output={"city": "Bonn"}))
    assert status_report(state).queued == 1


def test_an_answer_is_kept_when_somebody_speaks_after_it_and_no_call_is_left() -> None:
    state = answered(begun(limits=Limits(steps=1)), text="done")
    state = fold(state, MessageSent(message=Message.user("wait")))
    assert decide(state) == Finish(end=End(stop_reason="end_turn", output="done"))


def test_a_message_after_the_answer_is_read_when_a_call_is_left() -> None:
    state = answered(begun(), text="done")
    assert isinstance(decide(state), Finish)
    state = fold(state, MessageSent(message=Message.user("one more thing")))
    assert isinstance(decide(state), CallModel)


@pytest.mark.parametrize("stop", ["refusal", "guardrail", "max_tokens", "end_turn"])
def test_words_are_no_output_where_a_type_was_asked_for(stop: ModelStop) -> None:
    wrap_up: StopReason | None = "max_tool_calls" if stop == "end_turn" else None
    state = replace(begun(output_schema=TYPED), step=Step(wrap_up=wrap_up))
    state = answered(state, text="I cannot", stop=stop)
    command = decide(state)
    assert isinstance(command, Finish)
    assert command.end.output is None


def test_a_limit_gives_no_words_where_a_type_was_asked_for() -> None:
    state = answered(begun(limits=Limits(steps=1), output_schema=TYPED), call("work"), text="let me see")
    state = fold(state, CallReturned(result=result("call-1-1")))
    assert decide(state) == Finish(end=End(stop_reason="max_steps", output=None))


def test_the_end_fills_in_calls_that_were_never_started_and_keeps_the_results_of_others() -> None:
    state = answered(begun(), call("work"), call("pay"))
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    state = fold(state, CallReturned(result=result("call-1-1", text="worked")))
    state = fold(state, EndRequested(reason="stopped"))
    worked, paid = state.messages[-1].tool_results
    assert worked.text == "worked"
    waited = "nobody had approved or denied the call, which waited since 2026-11-20 00:00:01 UTC"
    assert (paid.is_error, paid.text) == (True, f"not run: the run was ended (stopped); {waited}")
    assert isinstance(decide(state), Finish)
    assert_well_formed(state.messages)


def test_only_a_call_that_was_under_way_may_have_taken_effect() -> None:
    state = answered(begun(tool_concurrency=1), call("work"), call("work"), call("pay"))
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    state = fold(fold(state, EndRequested(reason="cancelled")), GraceExpired())
    texts = [r.text for r in state.messages[-1].tool_results]
    assert "may or may not have taken effect" in texts[0]
    assert texts[1] == "not run: the run was ended"
    assert texts[2].startswith("not run: the run was ended (cancelled); nobody had approved or denied")


def test_a_persons_answer_may_be_a_picture() -> None:
    state = answered(begun(), call("ask_person", question="which?"))
    shown = Message(role="user", parts=[Text(text="this"), Image(data="QQ==")])
    state = fold(state, MessageSent(message=shown, call_id="call-1-1"))
    assert state.messages[-1].tool_results[0].content == list(shown.parts)


def test_what_a_failed_call_of_an_unpriced_model_has_cost_is_unknown_and_not_nothing() -> None:
    unpriced = ModelSpec(config=ModelConfig(name="other:x"))
    state = failed(begun(models=(unpriced,)), "authentication", wasted=Usage(input_tokens=9))
    assert state.ledger.cost_unknown
    assert not failed(begun(models=(unpriced,)), "authentication").ledger.cost_unknown


def test_a_stale_call_is_made_anew_and_not_for_ever() -> None:
    state = begun()
    for _ in range(MOST_STALE_RETRIES - 1):
        state = failed(state, "stale")
        assert isinstance(decide(state), CallModel)
    state = failed(state, "stale")
    assert state.ledger.steps == 1
    assert isinstance(decide(state), Finish)


def test_a_reply_that_overflows_the_context_is_not_kept_and_shows_less_next_time() -> None:
    state = begun()
    for n in range(4):
        state = answered(state, call("work", n=n))
        state = fold(state, CallReturned(result=result(state.step.calls[0].call.id)))
    before = state
    state = answered(state, text="too", stop="context_overflow")
    assert state.messages == before.messages
    command = decide(state)
    assert isinstance(command, MoveWindow)
    state = fold(state, WindowMoved(start=command.start))
    assert state.transcript.window_start > before.transcript.window_start
    assert isinstance(decide(state), CallModel)
    assert fold(state, StepBegan()).ledger.steps == before.ledger.steps + 1, "the same step again"


def test_a_late_overflow_does_not_hide_that_the_run_was_stopped() -> None:
    state = fold(asked(begun()), EndRequested(reason="stopped"))
    state = fold(state, reply(state, stop="context_overflow"))
    assert decide(state) == Finish(end=End(stop_reason="stopped", output=""))


def test_edited_arguments_are_what_runs_and_the_model_is_told() -> None:
    state = answered(begun(), call("pay", cents=5))
    state = fold(
        state,
        ApprovalResolved(decision=ApprovalDecision(call_id="call-1-1", allow=True, arguments={"cents": 4})),
    )
    command = decide(state)
    assert isinstance(command, CallTools)
    assert command.calls[0].call.arguments == {"cents": 4}
    state = fold(state, CallReturned(result=result("call-1-1", "pay")))
    assert state.messages[-1].text.startswith("(A person changed the arguments to {'cents': 4}.)")


def test_a_refusal_reaches_the_model_with_its_reason() -> None:
    state = answered(begun(), call("pay"))
    state = fold(
        state,
        ApprovalResolved(
            decision=ApprovalDecision(call_id="call-1-1", allow=False, by="lee", reason="too much")
        ),
    )
    assert state.messages[-1].tool_results[0].text == "This call was refused by lee: too much"
    assert state.messages[-1].tool_results[0].is_error


def test_resuming_a_parked_run_begins_again_with_the_first_model_and_the_same_step() -> None:
    state = failed(begun(models=(CHEAP, CHEAP)), "authentication")
    assert (state.chain.model, state.parking.parked) == (1, None)
    state = failed(state, "authentication")
    assert state.parking.parked is not None
    assert isinstance(decide(state), Wait)
    state = fold(state, Resumed())
    assert (state.chain.model, state.ledger.steps) == (0, 1)
    assert fold(state, StepBegan()).ledger.steps == 1


def test_models_that_failed_are_written_beside_the_answer_of_the_one_that_did_not() -> None:
    state = answered(failed(begun(models=(CHEAP, CHEAP)), "not_found"), text="hi")
    meta = state.messages[-1].meta
    assert meta is not None
    assert meta.errors == ["scripted:y: not_found: no"]


def test_a_reply_without_a_record_of_its_cost_is_our_bug() -> None:
    outcome = ModelOutcome(message=Message(role="assistant", parts=[]), stop="end_turn")
    with pytest.raises(AssertionError, match="records how a reply came to be"):
        fold(asked(begun()), Replied(outcome=outcome, at=NOW))


def test_a_deadline_counts_from_the_start_of_the_run() -> None:
    from datetime import timedelta

    assert begun(limits=Limits(timeout=timedelta(hours=1))).deadline_at == NOW + timedelta(hours=1)
    assert timedelta(seconds=2) > GRACE


def test_a_request_tightens_the_limits_of_its_run() -> None:
    request = RunRequest(agent="a", prompt="go", limits=Limits(steps=2))
    assert begun(request=request, limits=Limits(steps=9, tool_calls=3)).limits == Limits(
        steps=2, tool_calls=3
    )


def test_a_state_can_be_made_only_whole() -> None:
    meta = ReplyMeta(step=1, model="m")
    assert meta.attempts == 1
    with pytest.raises(TypeError):
        AgentState()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_identical_calls_are_kept_within_bounds() -> None:
    """Only digests are kept, of the newest calls, and continue-as-new carries them."""
    counts: dict[str, int] = {}
    for number in range(3 * MOST_COUNTED):
        count_identical(counts, "again")
        count_identical(counts, str(number))
    assert len(counts) == MOST_COUNTED
    assert counts["again"] == 3 * MOST_COUNTED
    state = asked(begun(limits=Limits(identical_calls=1)))
    state = fold(state, reply(state, call("work"), call("work"), call("work", n=2)))
    assert [one.state for one in state.step.calls] == ["ready", "done", "ready"]
    first, *chunks = json.loads(json.dumps(pack(program_of(state), state, HistoryFormat())))
    again, _ = unpack(program_of(state), first, chunks)
    assert isinstance(again, AgentState)
    assert again.step.identical == state.step.identical
    assert len(again.step.identical) == 2
    assert begun().step.identical == {}
