"""Hooks without a server: what the engine asks next, what it folds, and that an agent without hooks writes nothing."""

from dataclasses import replace
from typing import Any

import pytest

from perdure import Agent, Hook, tool
from perdure.errors import DefinitionError
from perdure.hooks import ALLOWED, HookedCall, HookPoint, HookRecord, points_of
from perdure.messages import Message
from perdure.wire.effects import (
    CheckedCall,
    HookOutcome,
    ModelInput,
    Progress,
    ToolInput,
    ToolOutcome,
    TranscriptView,
)
from perdure.workflows.engine.commands import CallModel, CallTools, CancelPending, Finish, RunHooks, Wait
from perdure.workflows.engine.events import (
    CallReturned,
    CallsStarted,
    EndRequested,
    Event,
    HooksAnswered,
    HooksFailed,
    HooksStarted,
    MessageSent,
    Resumed,
)
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.state import AgentState
from tests.unit.runs import (
    NOW,
    answered,
    asked,
    assert_well_formed,
    begun,
    call,
    program_of,
    result,
    spec_of,
    tool_spec,
)

FAR = tool_spec("far", kind="remote", task_queue="q")
ALL: tuple[HookPoint, ...] = ("on_start", "before_tool", "after_tool", "on_end")


def decided(state: AgentState) -> Any:
    return program_of(state).decide(state)


def hooked(*points: HookPoint, **changed: Any) -> AgentState:
    return begun(hooks=points, tools=(FAR, tool_spec("work"), tool_spec("pay", approval=True)), **changed)


def after(state: AgentState, *events: Event) -> AgentState:
    for event in events:
        state = fold(state, event)
    return state


def started(state: AgentState) -> AgentState:
    """The state once the hooks that it wants to ask are being asked."""
    command = decided(state)
    assert isinstance(command, RunHooks)
    ids = tuple(call_.call.id for call_ in command.calls)
    return fold(state, HooksStarted(point=command.point, ids=ids, end=command.end))


def verdict(point: HookPoint, **given: Any) -> HooksAnswered:
    if point in ("on_start", "on_end"):
        return HooksAnswered(point=point, outcome=HookOutcome(**given))
    return HooksAnswered(point=point, outcome=HookOutcome(calls=[CheckedCall(call_id="call-1-1", **given)]))


def failed(point: HookPoint) -> HooksFailed:
    return HooksFailed(point=point, message="broken", at=NOW)


# -- start


def test_start_is_asked_before_first_model_call() -> None:
    state = hooked("on_start")
    assert decided(state) == RunHooks(point="on_start")
    state = started(state)
    assert decided(state) == Wait(), "asked once"
    state = fold(state, verdict("on_start"))
    assert isinstance(decided(state), CallModel)


def test_start_can_end_the_run() -> None:
    state = fold(started(hooked("on_start")), verdict("on_start", end_turn="closed"))
    command = decided(state)
    assert isinstance(command, Finish)
    assert (command.end.output, command.end.stop_reason) == ("closed", "guardrail")


def test_late_or_repeated_answers_change_nothing() -> None:
    state = fold(started(hooked("on_start")), verdict("on_start"))
    assert fold(state, verdict("on_start", end_turn="x")) == state
    assert fold(state, failed("on_start")) == state


# -- calls


def test_functions_are_not_asked_about_apart() -> None:
    """Functions ask their hooks in the activity of the call."""
    state = answered(hooked("before_tool"), call("work"))
    assert isinstance(decided(state), CallTools)


@pytest.mark.parametrize("name", ["far", "pay"])
def test_calls_are_checked_before_they_run(name: str) -> None:
    """Remote tools have no activity of ours, and a person must see the arguments that hooks have set."""
    state = answered(hooked("before_tool"), call(name))
    assert [c.state for c in state.step.calls] == ["unchecked"]
    state = fold(started(state), verdict("before_tool", arguments={"n": 2}))
    [checked] = state.step.calls
    assert (checked.state, checked.checked) == ("ready" if name == "far" else "asking", True)
    assert checked.call.arguments == {"n": 2}


@pytest.mark.parametrize(
    ("given", "text"),
    [({"deny": "no"}, "no"), ({"end_turn": "enough"}, "not run: the turn was ended")],
)
def test_refused_call_has_its_result(given: dict[str, Any], text: str) -> None:
    state = fold(started(answered(hooked("before_tool"), call("far"))), verdict("before_tool", **given))
    assert_well_formed(state.messages)
    assert state.messages[-1].tool_results[0].text == text
    assert isinstance(decided(state), Finish if "end_turn" in given else CallModel)


def ran(*points: HookPoint) -> AgentState:
    """A remote call that returned."""
    state = answered(hooked(*points), call("far"))
    if "before_tool" in points:
        record = HookRecord(hook="H", point="before_tool", verdict="replace")
        state = fold(started(state), verdict("before_tool", records=[record]))
    return after(state, CallsStarted(ids=("call-1-1",)), CallReturned(result=result("call-1-1", "far")))


def test_results_are_reviewed_once() -> None:
    state = ran("before_tool", "after_tool")
    assert [c.state for c in state.step.calls] == ["unreviewed"]
    record = HookRecord(hook="H", point="after_tool", verdict="replace")
    state = fold(started(state), verdict("after_tool", text="shown", records=[record]))
    [shown] = state.messages[-1].tool_results
    assert shown.text == "shown"
    assert [r.point for r in shown.hooks] == ["before_tool", "after_tool"], "each record once"


@pytest.mark.parametrize("moment", ["waiting", "asking", "running"])
def test_unseen_result_is_withheld_when_the_run_ends(moment: str) -> None:
    """The next turn of a session must not read a result that no hook has seen."""
    if moment == "running":
        state = after(answered(hooked("after_tool"), call("far")), CallsStarted(ids=("call-1-1",)))
        state = after(state, EndRequested(reason="stopped"), CallReturned(result=result("call-1-1", "far")))
    else:
        state = ran("after_tool")
        state = fold(started(state) if moment == "asking" else state, EndRequested(reason="stopped"))
    [shown] = state.messages[-1].tool_results
    assert "before its result could be checked" in shown.text
    assert shown.is_error


def test_person_can_be_asked_by_a_hook_of_a_function() -> None:
    state = after(answered(hooked("before_tool"), call("work")), CallsStarted(ids=("call-1-1",)))
    state = fold(state, CallReturned(result=result("call-1-1"), ask="odd", arguments={"n": 3}))
    [held] = state.step.calls
    assert (held.state, held.ask_reason, held.checked) == ("asking", "odd", True)
    assert held.call.arguments == {"n": 3}


def test_question_of_a_hook_in_an_ending_run_is_not_put() -> None:
    state = after(answered(hooked("before_tool"), call("work")), CallsStarted(ids=("call-1-1",)))
    state = after(state, EndRequested(reason="stopped"), CallReturned(result=result("call-1-1"), ask="odd"))
    assert state.messages[-1].tool_results[0].text == "not run: the run was ended"


# -- failures


@pytest.mark.parametrize("point", ALL)
def test_failed_hooks_park_and_are_asked_again(point: HookPoint) -> None:
    state = {
        "on_start": lambda: hooked("on_start"),
        "before_tool": lambda: answered(hooked("before_tool"), call("far")),
        "after_tool": lambda: ran("after_tool"),
        "on_end": lambda: answered(hooked("on_end"), text="done"),
    }[point]()
    question = decided(state)
    state = fold(started(state), failed(point))
    assert state.parking.parked is not None
    assert state.parking.parked.kind == "hook_failed"
    assert state.end is None, "a parked run takes commands"
    assert decided(state) == Wait()
    again = decided(fold(state, Resumed()))
    assert (again.point, again.end) == (question.point, question.end)
    assert [c.call for c in again.calls] == [c.call for c in question.calls]


@pytest.mark.parametrize("on_failure", ["fail", "answer"])
def test_failed_hooks_give_no_unseen_words(on_failure: str) -> None:
    state = answered(hooked("on_end", on_failure=on_failure, fallback_message="sorry"), text="secret")
    command = decided(fold(started(state), failed("on_end")))
    assert isinstance(command, Finish), "they are not asked again"
    assert (command.end.output, command.end.answers) == ("sorry", on_failure == "answer")


# -- end


def test_end_is_proposed_before_it_is_an_end() -> None:
    state = started(answered(hooked("on_end"), text="done"))
    assert state.end is None
    assert decided(state) == Wait()
    command = decided(fold(state, verdict("on_end", is_replaced=True, output="other")))
    assert isinstance(command, Finish)
    assert command.end.output == "other"


def test_message_takes_back_a_proposed_end() -> None:
    state = started(answered(hooked("on_end"), text="done"))
    state = fold(state, MessageSent(message=Message.user("more")))
    assert decided(state) == Wait(), "the answer is on its way"
    assert isinstance(decided(fold(state, verdict("on_end"))), CallModel)


def test_stop_asks_about_its_own_end() -> None:
    """A stop while hooks look at the end ends them, and they see the words of the stopped run."""
    state = started(answered(hooked("on_end"), text="done"))
    state = fold(state, EndRequested(reason="stopped"))
    assert decided(state) == CancelPending()
    state = fold(state, failed("on_end"))
    question = decided(state)
    assert question.end.stop_reason == "stopped"
    state = started(state)
    assert decided(state) == Wait()
    command = decided(fold(state, failed("on_end")))
    assert isinstance(command, Finish)
    assert (command.end.stop_reason, command.end.output) == ("stopped", "")


def test_cancelled_run_gives_no_unseen_words() -> None:
    state = fold(
        asked(answered(hooked("on_end"), call("nothing"), text="secret")), EndRequested(reason="cancelled")
    )
    state = replace(state, step=replace(state.step, asking_model=False))
    command = decided(state)
    assert isinstance(command, Finish)
    assert command.end.output == ""


# -- definitions, and what an agent without hooks writes


class Both(Hook):
    async def before_tool(self, call: HookedCall) -> None:
        return None

    def on_end(self, run: Any) -> None:  # type: ignore[override]  # plain hooks are allowed
        return None


def test_spec_names_the_points() -> None:
    agent = Agent(name="a", model="scripted:x", hooks=[Both(), Hook()])
    assert agent.spec().hooks == ("before_tool", "on_end")
    assert points_of((Hook(),)) == ()
    assert set(ALLOWED) == set(points_of((type("All", (Hook,), dict.fromkeys(ALLOWED, None))(),)))


@pytest.mark.parametrize("bad", [[Both], ["x"], 7])
def test_only_hooks_are_hooks(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="hook"):
        Agent(name="a", model="scripted:x", hooks=bad)


def test_agent_without_hooks_writes_no_hook_field() -> None:
    """Nothing of what it writes grows by a byte."""

    @tool
    def work() -> str:
        """Work."""
        return ""

    view = TranscriptView(pinned=0, start=0, length=1)
    written = [
        Agent(name="a", model="scripted:x", tools=[work]).spec(),
        spec_of(),
        ModelInput(agent="a", spec="x", step=1, model=0, view=view, max_tokens=1),
        ToolInput(agent="a", tool="t", call_id="c", arguments={}, idempotency_key="k", preview_bytes=1),
        ToolOutcome(result=result("call-1-1")),
        Progress(call="c", attempt=1, seq=1),
        Message.model_validate(answered(begun(), text="hi").messages[-1]),
    ]
    names = {"hooks", "checked", "ask", "end_turn", "arguments"}
    for value in written:
        allowed = {"arguments"} if isinstance(value, ToolInput) else set[str]()
        assert not names & set(value.model_dump(mode="json")) - allowed, type(value).__name__
    assert '"hooks"' not in written[-1].model_dump_json()


def test_agent_without_hooks_asks_none() -> None:
    assert isinstance(decided(begun()), CallModel)
    assert isinstance(decided(answered(begun(), text="done")), Finish)
