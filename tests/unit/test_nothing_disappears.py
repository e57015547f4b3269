"""Every accepted message and every call is seen by a model, carried out, or named in the result."""

from dataclasses import replace
from typing import Any

import pytest

from perdure.limits import Limits
from perdure.messages import Message, ToolCall
from perdure.model import ModelStop
from perdure.wire.effects import CUT_CALL
from perdure.wire.names import FINAL_ANSWER, UPDATE_PLAN
from perdure.wire.results import StopReason
from perdure.wire.tree import Lineage
from perdure.workflows.engine.calls import NOT_ACCEPTED_YET
from perdure.workflows.engine.commands import CallModel, CallTools, Finish
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import CallReturned, CallsStarted, EndRequested, MessageSent
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.handovers import handed_on_by
from perdure.workflows.engine.reply import MOST_CUT_REPLIES
from perdure.workflows.engine.state import AgentState, End, Step

from .runs import NOW, answered, asked, begun, call, failed, reply, result, result_of, tool_spec

TYPED = {"type": "object"}
BONN = {"city": "Bonn"}
ANSWER = call(FINAL_ANSWER, city="Bonn")
PLAN = call(UPDATE_PLAN, items=[{"text": "all", "state": "done"}])
CUT = call("work", CUT_CALL)
SENT = MessageSent(message=Message.user("wait"))


def typed(**changed: Any) -> AgentState:
    return begun(output_schema=TYPED, planning=True, **changed)


def finished(state: AgentState) -> End:
    command = decide(state)
    assert isinstance(command, Finish), command
    return command.end


def missing(state: AgentState) -> list[str]:
    return result_of(state, finished(state)).missing


def carried_out(state: AgentState) -> AgentState:
    """The state once the calls that can run have run."""
    command = decide(state)
    assert isinstance(command, CallTools), command
    ids = tuple(ready.call.id for ready in command.calls)
    state = fold(state, CallsStarted(ids=ids))
    for call_id in ids:
        state = fold(state, CallReturned(result=result(call_id)))
    return state


@pytest.mark.parametrize(
    ("is_below", "on_failure", "answers"),
    [(False, "park", True), (True, "park", False), (True, "answer", True)],
)
def test_overflow_below_is_no_answer(is_below: bool, on_failure: str, answers: bool) -> None:
    """A run below that does not fit its model has failed, unless its agent answers in spite of failures."""
    lineage = Lineage(parent="p", key="a-1", spec_digest="x", as_of=NOW) if is_below else None
    state = begun(on_failure=on_failure)
    state = failed(replace(state, tree=replace(state.tree, lineage=lineage)), "context_overflow")
    end = finished(state)
    assert (end.stop_reason, end.answers, bool(end.output)) == ("context_overflow", answers, answers)


# -- calls beside the final answer


def test_call_beside_final_answer_runs() -> None:
    """A call beside a final answer is carried out; the model reads its result, and answers anew."""
    state = answered(typed(), call("work"), ANSWER, output=BONN)
    assert [c.state for c in state.step.calls] == ["ready", "done"]
    state = carried_out(state)
    assert state.messages[-1].tool_results[1].text == NOT_ACCEPTED_YET
    assert isinstance(decide(state), CallModel)
    state = answered(state, ANSWER, output=BONN)
    assert finished(state) == End(stop_reason="end_turn", output=BONN)
    assert missing(state) == []


def test_broken_call_beside_answer_is_told() -> None:
    """A call that cannot run goes back to the model with its problem, as it does without an answer beside it."""
    state = answered(typed(), ANSWER, call("work", "does not fit"), output=BONN)
    assert isinstance(decide(state), CallModel)
    assert [r.text for r in state.messages[-1].tool_results] == [NOT_ACCEPTED_YET, "does not fit"]


def test_limit_takes_the_kept_answer() -> None:
    """Where no model call is left, the answer beside the calls is the output, and the calls were carried out."""
    state = carried_out(answered(typed(limits=Limits(steps=1)), call("work"), ANSWER, output=BONN))
    assert finished(state) == End(stop_reason="max_steps", output=BONN)
    assert missing(state) == []


def test_stop_names_the_call_beside_the_answer() -> None:
    state = answered(typed(), call("pay"), ANSWER, output=BONN)
    state = fold(state, EndRequested(reason="stopped"))
    assert finished(state).output == BONN
    [line] = missing(state)
    assert line.startswith(
        "pay(): not run: the run was ended (stopped); nobody had approved or denied the call"
    )


@pytest.mark.parametrize("beside", [(), (PLAN,), (ANSWER,)])
def test_answer_alone_ends_the_run(beside: tuple[ToolCall, ...]) -> None:
    """An update of the plan, and the same answer twice, do not delay the answer."""
    state = answered(typed(), ANSWER, *beside, output=BONN)
    assert finished(state) == End(stop_reason="end_turn", output=BONN)
    assert missing(state) == []
    assert [item.state for item in state.transcript.plan] == ["done"] * (PLAN in beside)


def test_second_other_answer_is_named() -> None:
    state = answered(typed(), ANSWER, call(FINAL_ANSWER, city="Köln"), output=BONN)
    assert finished(state).output == BONN
    [line] = missing(state)
    assert line.startswith('final_answer(city="Köln"): not taken')


def test_calls_beside_a_last_answer_are_named() -> None:
    """In the last call of a run the answer counts, and the calls beside it are named."""
    state = replace(typed(), step=Step(wrap_up="max_tool_calls"))
    state = answered(state, ANSWER, call("work"), output=BONN)
    assert finished(state) == End(stop_reason="max_tool_calls", output=BONN)
    assert missing(state) == ["work(): not run: max_tool_calls"]


def test_answer_beside_broken_calls_ends_in_words() -> None:
    """A model that repeats a broken call beside its answer does not go round for ever."""
    state = typed()
    for _ in range(5):
        state = answered(state, ANSWER, call("work", "does not fit"), output=BONN)
    end = finished(state)
    assert end.failure is not None
    assert (end.failure.kind, end.output) == ("malformed_reply", BONN)


# -- calls that were cut


def test_cut_call_is_answered_as_failed() -> None:
    """A call that the reply's length cut goes back to the model; those before it are complete, and run."""
    state = answered(begun(), call("work"), CUT, stop="max_tokens")
    state = carried_out(state)
    assert [r.is_error for r in state.messages[-1].tool_results] == [False, True]
    assert isinstance(decide(state), CallModel)


@pytest.mark.parametrize(("clamped", "reason"), [(None, "max_tokens"), ("cost_budget", "cost_budget")])
def test_cut_calls_end_the_run(clamped: StopReason | None, reason: StopReason) -> None:
    """A model that is cut in its only call again and again ends the run, which names the call."""
    state = begun()
    for number in range(1, MOST_CUT_REPLIES + 1):
        assert isinstance(decide(state), CallModel)
        state = asked(state)
        state = replace(state, step=replace(state.step, clamped_by=clamped))
        state = fold(state, reply(state, CUT, text=f"try {number}", stop="max_tokens"))
    assert finished(state) == End(stop_reason=reason, output=f"try {MOST_CUT_REPLIES}")
    assert missing(state) == ["work(): not run: the reply was cut by its length"]


def test_progress_forgives_cut_replies() -> None:
    """A cut reply with a complete call makes progress, and is not counted."""
    state = begun()
    for _ in range(MOST_CUT_REPLIES * 2):
        state = carried_out(answered(state, call("work"), CUT, stop="max_tokens"))
    assert isinstance(decide(state), CallModel)


def test_cut_final_answer_costs_no_repair() -> None:
    state = typed(output_repairs=0)
    state = answered(state, call(FINAL_ANSWER, CUT_CALL), stop="max_tokens")
    assert isinstance(decide(state), CallModel)


def test_call_in_an_overflowed_reply_is_named() -> None:
    """A reply that ran into the end of the context, and ends the run, names its calls."""
    state = asked(begun())
    state = fold(state, reply(state, call("work"), text="so far", stop="context_overflow"))
    end = finished(state)
    assert (end.stop_reason, end.output) == ("context_overflow", "so far")
    assert "work(): not run: the reply ran into the end of the context" in missing(state)


# -- empty replies


def test_empty_reply_gives_the_newest_words() -> None:
    state = carried_out(answered(begun(), call("work"), text="It costs 310."))
    state = answered(state, text=" \n")
    assert finished(state) == End(stop_reason="end_turn", output="It costs 310.")


def test_empty_reply_is_asked_about_once() -> None:
    """Without words since the last message the model is asked once more; a second silence is a failure."""
    state = answered(
        answered(begun(), text="hello"), text=""
    )  # the words before are an answer to another message
    state = answered(fold(begun(), SENT), text="")
    again = decide(state)
    assert isinstance(again, CallModel)
    assert again.note is not None
    assert "empty" in again.note
    assert finished(answered(state, text="here")).output == "here"
    state = carried_out(answered(state, call("work")))
    state = answered(answered(state, text=""), text="")
    failure = finished(state).failure
    assert failure is not None
    assert (failure.kind, "its last results: work: ok" in failure.message) == ("malformed_reply", True)


def test_words_before_a_message_answer_nothing() -> None:
    """The newest words answer only what was said before them."""
    state = fold(answered(begun(), text="hello"), SENT)
    state = answered(state, text="")
    assert isinstance(decide(state), CallModel)


def test_empty_last_call_gives_earlier_words() -> None:
    state = carried_out(answered(begun(), call("work"), text="half"))
    state = replace(state, step=replace(state.step, wrap_up="max_tool_calls"))
    assert finished(answered(state, text="")) == End(stop_reason="max_tool_calls", output="half")


# -- messages


@pytest.mark.parametrize(
    ("stop", "wrap_up", "text"),
    [
        ("end_turn", None, "done"),
        ("end_turn", None, ""),
        ("max_tokens", None, "so far"),
        ("end_turn", "max_tool_calls", "done"),
        ("tool_calls", "max_tool_calls", "done"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_message_in_the_last_step_is_read(
    stop: ModelStop, wrap_up: StopReason | None, text: str, late: bool
) -> None:
    """A message that comes during the last model call, or while the end is under way, makes the run go on."""
    state = asked(replace(begun(), step=Step(wrap_up=wrap_up)))
    made = [call("work")] if stop == "tool_calls" else []
    if late:
        state = fold(fold(state, reply(state, *made, text=text, stop=stop)), SENT)
    else:
        state = fold(state, SENT)
        state = fold(state, reply(state, *made, text=text, stop=stop))
    assert isinstance(decide(state), CallModel)
    assert asked(state).messages[-1] == SENT.message


@pytest.mark.parametrize("stop", ["refusal", "guardrail"])
def test_refusal_names_the_message(stop: ModelStop) -> None:
    state = fold(asked(begun()), SENT)
    state = fold(state, reply(state, text="no", stop=stop))
    assert missing(state) == ["message not read: wait"]


def test_limit_names_the_message() -> None:
    state = fold(asked(begun(limits=Limits(steps=1))), SENT)
    state = fold(state, reply(state, text="done"))
    assert missing(state) == ["message not read: wait"]


def test_answer_that_no_model_read_is_named() -> None:
    """An answer to a question is a message too."""
    state = answered(begun(), call("ask_person", question="which?"), call("work"))
    state = fold(state, MessageSent(message=Message.user("the red one"), call_id="call-1-1"))
    state = fold(state, EndRequested(reason="stopped"))
    assert missing(state) == ["work(): not run: the run was ended", "answer not read: the red one"]


def test_hook_ends_a_turn_and_names_the_message() -> None:
    """An end that a hook gives does not wait for a message: the hook has decided that nothing goes on."""
    state = fold(answered(begun(), call("work")), SENT)
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    state = fold(state, CallReturned(result=result("call-1-1"), end_turn="enough"))
    assert finished(state) == End(stop_reason="guardrail", output="enough")
    assert missing(state) == ["message not read: wait"]


def test_unanswered_task_is_named() -> None:
    """A run that ends before any reply says so, also where the model call had begun."""
    assert missing(fold(begun(), EndRequested(reason="stopped"))) == ["the task: no model has answered it"]


def test_words_of_a_tool_are_no_refusal_of_ours() -> None:
    """A write whose own error begins with the words of a limit is judged as any failed call."""
    state = begun(tools=(tool_spec("work", effect="write"),), limits=Limits(per_tool={"work": 1}))
    state = fold(answered(state, call("work", n=1)), CallsStarted(ids=("call-1-1",)))
    own = "not run: limit of the day reached"
    state = fold(state, CallReturned(result=result("call-1-1", text=own, is_error=True)))
    state = answered(answered(state, call("work", n=2)), text="done")
    assert [line for line in missing(state) if "of the day" in line] == []
    assert len(missing(state)) == 1


def test_next_attempt_reads_an_unread_answer() -> None:
    """A person's answer that a failed attempt of a node has not read goes on to the next attempt."""
    state = answered(begun(), call("ask_person", question="which?"))
    lineage = Lineage(parent="p", key="a-1", spec_digest="x", as_of=NOW)
    state = replace(state, tree=replace(state.tree, lineage=lineage))
    state = fold(state, MessageSent(message=Message.user("the red one"), call_id="call-1-1"))
    left = handed_on_by(state, End(stop_reason="error"))
    assert left is not None
    assert [message.text for message in left.messages] == [
        '(A person was asked: ask_person(question="which?")) the red one'
    ]
