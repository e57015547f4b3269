"""What an agent's loop makes of the runs that it started: what went wrong once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perdure.limits import Limits
from perdure.messages import Usage
from perdure.model import ModelConfig
from perdure.wire.results import RunResult
from perdure.wire.spec import ModelSpec
from perdure.wire.tree import Amount, BudgetRequest, Grant, Peer, Report
from perdure.workflows.engine.commands import (
    CallModel,
    CallTools,
    CancelPending,
    Command,
    Finish,
    GrantChildren,
    Wait,
)
from perdure.workflows.engine.decide import decide, startable
from perdure.workflows.engine.events import (
    CallReturned,
    CallsStarted,
    ChildEnded,
    ChildReported,
    EndRequested,
    StepBegan,
)
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.state import AgentState
from perdure.workflows.engine.tree import (
    Child,
    LeaseState,
    Tree,
    answer_requests,
    apply_grant,
    mark_requested,
    outcome_of,
    shortage,
)
from tests.fuzz import casts
from tests.unit.runs import NOW, PRICE, answered, begun, call, reply, result, result_of, tool_spec

KEY = "helper-1-1"
TOOLS = (tool_spec("work"), tool_spec("helper", kind="agent", agent="helper", collect="completion"))


def helped(**limits: Any) -> AgentState:
    """An agent in its first step, whose helper has begun and will answer when it is done."""
    model = ModelSpec(config=ModelConfig(name="scripted:x", max_tokens=300), price=PRICE)
    state = begun(tools=TOOLS, models=(model,), limits=Limits(steps=None, **limits))
    state = answered(state, call("helper", input="go"), usage=Usage(input_tokens=9))
    state = fold(state, CallsStarted(ids=("call-1-1",)))
    assert state.tree.child(KEY) is not None
    return state


def ended(tool_calls: int) -> ChildEnded:
    outcome = RunResult(
        agent="helper", output="found", stop_reason="end_turn", tool_calls=tool_calls, cost_microusd=0
    )
    return ChildEnded(key=KEY, outcome=outcome, at=NOW, result=result("call-1-1", "helper", "found"))


def test_a_step_goes_on_when_the_end_of_a_helper_settles_that_its_last_call_is_not_run() -> None:
    state = helped(tool_calls=4)
    state = answered(state, call("work"), call("work"), call("work"))
    assert [one.state for one in state.step.calls] == ["ready", "ready", "unpaid"]
    state = fold(state, CallsStarted(ids=("call-2-1", "call-2-2")))
    for call_id in ("call-2-1", "call-2-2"):
        state = fold(state, CallReturned(result=result(call_id)))
    assert decide(state) == Wait()
    state = fold(state, ended(tool_calls=1))
    assert state.ledger.tool_calls == 4
    assert state.messages[-1].tool_results[-1].is_error
    assert isinstance(decide(state), CallModel)


def test_a_helper_is_not_given_what_the_model_call_under_way_may_spend() -> None:
    state = fold(helped(output_tokens=620), StepBegan())
    assert state.tree.children[0].lease.output_tokens == 310
    report = Report(
        key=KEY, request=BudgetRequest(minimum=Amount(output_tokens=1), preferred=Amount(output_tokens=300))
    )
    state = fold(state, ChildReported(report=report))
    assert granted(state) == Amount(output_tokens=10), "310 are lent, 300 under way"
    state = fold(state, reply(state, text="well", usage=Usage(input_tokens=9, output_tokens=100)))
    assert granted(state) == Amount(output_tokens=210)


def by_steps(state: AgentState) -> AgentState:
    """No further model call is allowed."""
    return replace(answered(state, call("work")), limits=Limits(steps=2))


def by_calls(state: AgentState) -> AgentState:
    """A tool call is refused, and the model is to have its last call."""
    state = replace(state, limits=Limits(steps=None, tool_calls=1))
    return answered(state, call("work"))


def by_length(state: AgentState) -> AgentState:
    """The reply is cut by its length."""
    return answered(state, text="The first ha", stop="max_tokens")


def by_words(state: AgentState) -> AgentState:
    return answered(state, text="I wait for the rest.")


def by_handoff(state: AgentState) -> AgentState:
    state = replace(state, tree=replace(state.tree, peers=[Peer(name="b", description="Bills.")]))
    return answered(state, call("handoff_to_agent", agent_name="b", message="Bill it."))


@pytest.mark.parametrize(
    ("ends", "then"),
    [
        (by_steps, Finish),
        (by_calls, CallModel),
        (by_length, CallModel),
        (by_words, CallModel),
        (by_handoff, Finish),
    ],
)
def test_no_end_but_of_time_calls_a_helper_back(
    ends: Callable[[AgentState], AgentState], then: type[Command]
) -> None:
    """A run waits for the helpers that answer later; then the model reads the answer, or the result names it."""
    state = ends(helped(tool_calls=9))
    if state.step.calls and (ready := startable(state)):
        state = fold(state, CallsStarted(ids=tuple(started.call.id for started in ready)))
        for started in ready:
            state = fold(state, CallReturned(result=result(started.call.id)))
    assert decide(state) == Wait()
    state = fold(state, ended(tool_calls=0))
    command = decide(state)
    assert isinstance(command, then)
    if isinstance(command, Finish):
        outcome = result_of(state, command.end)
        handed = [message.text for message in outcome.handed_on.messages] if outcome.handed_on else []
        assert any("found" in line for line in (*outcome.missing, *handed))


@pytest.mark.parametrize("hands_over_at_once", [True, False])
def test_stop_gives_up_a_handoff_that_waits(hands_over_at_once: bool) -> None:
    """A handoff that waits for a helper does not happen once the run is stopped; its result says so."""
    if hands_over_at_once:
        state = begun(tools=TOOLS, limits=Limits())
        state = replace(state, tree=replace(state.tree, peers=[Peer(name="b", description="Bills.")]))
        handoff = call("handoff_to_agent", agent_name="b", message="Bill it.")
        state = answered(state, call("helper", input="go"), handoff)
        state = fold(state, CallsStarted(ids=("call-1-1",)))
    else:
        state = by_handoff(helped())
    assert decide(state) == Wait()
    state = fold(state, EndRequested(reason="stopped"))
    assert decide(state) == CancelPending()
    state = fold(state, ended(tool_calls=0))
    last = decide(state)
    assert isinstance(last, Finish)
    assert last.end.stop_reason == "stopped"
    results = [result for message in state.messages for result in message.tool_results]
    assert [r.text for r in results if r.name == "handoff_to_agent"] == ["not handed over: the run was ended"]


def granted(state: AgentState) -> Amount | None:
    command = decide(state)
    assert isinstance(command, GrantChildren)
    ((_, grant),) = command.grants
    return grant.amount


def asking(key: str, wanted: Amount, number: int, lease: Amount = Amount()) -> Child:
    request = BudgetRequest(minimum=wanted, preferred=wanted)
    return Child(key=key, name=key, run_id=key, lease=lease, request=request, report_number=number)


def test_lack_of_one_tool_is_refused_alone() -> None:
    """A run that lacks calls of a tool is refused these; others get what they asked for, and nobody has to end."""
    limits, nothing = Amount(output_tokens=100, per_tool={"pay": 1}), Amount()
    spent = Amount(output_tokens=0, per_tool={"pay": 1})
    payer, writer = (
        asking("payer", Amount(per_tool={"pay": 1}), 1),
        asking("writer", Amount(output_tokens=50), 2),
    )
    answers = answer_requests(Tree(children=(payer, writer)), limits, spent, busy=False)
    assert answers.grants == (("writer", Grant(amount=Amount(output_tokens=50))),)
    alone = answer_requests(Tree(children=(payer,)), limits, spent, busy=False)
    assert alone.grants == (("payer", Grant(tools=["pay"])),)
    holder = Child(key="holder", name="h", run_id="h", lease=Amount(per_tool={"pay": 1}))
    held = answer_requests(Tree(children=(payer, holder)), limits, nothing, busy=False)
    assert held.grants == (), "the holder may give it back"


def test_run_without_a_tool_may_ask_for_the_rest() -> None:
    """The refusal of a tool's calls is no refusal of tokens, and is remembered for that tool alone."""
    lease = LeaseState(lender="boss", amount=Amount(output_tokens=9, per_tool={"pay": 0}))
    tree = mark_requested(Tree(lease=lease), BudgetRequest(minimum=CALL, preferred=CALL))
    tree = apply_grant(tree, Grant(tools=["pay"]))
    assert not tree.lease.is_asking
    assert shortage(tree, Amount(), Amount(), CALL) == (CALL, False)
    more = Amount(output_tokens=10)
    assert shortage(tree, Amount(), Amount(), more) == (Amount(output_tokens=1), True)


CALL = Amount(per_tool={"pay": 1})


def test_a_lost_helper_is_booked_with_no_more_than_it_could_have_used_of_each_kind() -> None:
    outcome = RunResult(agent="helper", stop_reason="cancelled", usage=Usage(estimated=True))

    def booked(**lease: Any) -> tuple[int, int]:
        child = Child(key=KEY, name="helper", run_id="r", lease=Amount(**lease))
        used = outcome_of(child, outcome).usage
        assert used.estimated
        return used.all_input_tokens, used.output_tokens

    assert booked(input_tokens=0, output_tokens=7, total_tokens=95) == (0, 7)
    assert booked(input_tokens=20, total_tokens=95) == (20, 75)
    assert booked(output_tokens=7, total_tokens=95) == (88, 7)
    assert booked(total_tokens=95) == (95, 0)
    assert booked(input_tokens=20) == (20, 0)


def test_calls_that_were_waited_for_start_when_a_helper_leaves_its_own_unused() -> None:
    state = answered(helped(tool_calls=4), call("work"), call("work"), call("work"))
    state = fold(state, ended(tool_calls=0))
    command = decide(state)
    assert isinstance(command, CallTools)
    assert len(command.calls) == 3


def given_up(kind: str) -> RunResult:
    """A swarm, or an agent, that is stopped while a model call goes on which does not come back in time."""
    member: Any = casts.swarm([{}] * 5) if kind == "swarm" else casts.family([{}] * 5)
    world, root = casts.world_of(member, {"output_tokens": 1000, "tool_calls": 9})
    root.wake()
    for child in [*world.new]:
        world.new.remove(child)
        child.wake()
    root.wake(EndRequested(reason="stopped"))
    root.lose_patience()
    assert root.result is not None
    return root.result


def test_a_swarm_books_what_an_agent_that_did_not_answer_may_have_used() -> None:
    result = given_up("swarm")
    assert result.usage.estimated
    assert (result.usage.output_tokens, result.tool_calls) == (1000, 9)


def test_a_run_says_that_it_does_not_know_what_a_call_has_used_that_did_not_come_back() -> None:
    assert given_up("agent").usage.estimated
