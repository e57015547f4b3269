"""Which model is asked next: conditions, money, stickiness; and what a parked run waits for."""

from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, DefinitionError, Fallback, ToolFallback, tool
from perdure.errors import RULES
from perdure.limits import Limits
from perdure.messages import ResultPart, Text, ToolResult
from perdure.model import ModelConfig
from perdure.prices import Price
from perdure.wire.effects import ModelFailure
from perdure.wire.requests import RunRequest
from perdure.wire.results import Failure, RunResult
from perdure.wire.spec import ModelSpec
from perdure.wire.tree import Amount, ChildInput, Lease, Lineage
from perdure.workflows.engine.agent_calls import is_error, result_text
from perdure.workflows.engine.commands import CallModel, CallTools, Finish, SwitchModel, Wait
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import (
    CallReturned,
    CallsStarted,
    Event,
    ModelFailed,
    ModelSwitched,
    Redriven,
    Resumed,
    RetryDue,
    StepBegan,
)
from perdure.workflows.engine.fold import fold, initial
from perdure.workflows.engine.report import report_due
from perdure.workflows.engine.state import AgentState, Origin
from perdure.workflows.model_inputs import model_input

from .runs import NOW, asked, begun, call, reply, result, spec_of, tool_spec

DEAR = Price(input=1_000_000, output=2_000_000, cache_read=0, cache_write=1_000_000)
CHEAP = Price(input=1_000, output=2_000, cache_read=0, cache_write=1_000)


def chain(*fallbacks: dict[str, Any]) -> tuple[ModelSpec, ...]:
    first = ModelSpec(config=ModelConfig(name="first:x"), price=DEAR)
    others: list[ModelSpec] = []
    for n, given in enumerate(fallbacks):
        fields: dict[str, Any] = {"config": ModelConfig(name=f"other{n}:x"), "price": DEAR, **given}
        others.append(ModelSpec(**fields))
    return (first, *others)


def failed(state: AgentState, kind: str, *, transient: float | None = None, at: float = 0) -> AgentState:
    after = None if transient is None else timedelta(seconds=transient)
    failure = ModelFailure(kind=kind, message="why", retry_in=after)
    return fold(asked(state), ModelFailed(failure=failure, at=NOW + timedelta(seconds=at)))


def test_a_fallback_is_taken_on_what_it_says_and_on_nothing_else() -> None:
    models = chain({"on": ("rate_limited",)}, {"on": ("overloaded", "timeout")})
    assert failed(begun(models=models), "rate_limited").chain.model == 1
    assert failed(begun(models=models), "timeout").chain.model == 2
    parked = failed(begun(models=models), "authentication")
    assert (parked.chain.model, parked.parking.parked is not None) == (0, True)


def test_without_conditions_it_is_taken_on_every_error_that_falls_back() -> None:
    for kind, rule in RULES.items():
        state = failed(begun(models=chain({})), kind)
        assert (state.chain.model == 1) == rule.falls_back, kind


def test_one_that_is_not_sticky_answers_one_step_and_the_errors_are_kept_beside_the_answer() -> None:
    state = failed(begun(models=chain({"sticky": False})), "overloaded")
    state = fold(asked(state), reply(state, call("work")))
    assert state.chain.model == 0
    meta = state.messages[-1].meta
    assert meta is not None
    assert (meta.model, meta.errors) == ("other0:x", ["first:x: overloaded: why"])
    sticky = failed(begun(models=chain({})), "overloaded")
    sticky = fold(asked(sticky), reply(sticky, call("work")))
    assert sticky.chain.model == 1


def test_a_model_with_more_room_is_taken_before_the_conversation_is_cut() -> None:
    state = asked(begun(models=chain({"on": ("context_overflow",)})))
    larger = fold(state, reply(state, stop="context_overflow"))
    assert (larger.chain.model, larger.transcript.window_start, larger.step.redo) == (1, 0, True)
    plain = asked(begun(models=chain({})))
    assert fold(plain, reply(plain, stop="context_overflow")).chain.model == 0


def test_when_the_money_does_not_pay_for_the_model_a_cheaper_one_goes_on() -> None:
    models = chain({"price": CHEAP, "on": ("cost_budget",)})
    state = begun(models=models, limits=Limits(cost_usd=0.000_02))
    command = decide(state)
    assert command == SwitchModel(model=1)
    state = fold(state, ModelSwitched(model=1))
    assert isinstance(decide(state), CallModel)
    dear = begun(models=chain({}), limits=Limits(cost_usd=0.000_02))
    assert isinstance(decide(dear), Finish)


def test_a_fallback_that_needs_money_left_is_passed_over_without_it() -> None:
    models = chain({"least_cost_left_microusd": 5_000_000}, {})
    assert failed(begun(models=models, limits=Limits(cost_usd=1)), "overloaded").chain.model == 2
    assert failed(begun(models=models, limits=Limits(cost_usd=9)), "overloaded").chain.model == 1
    assert failed(begun(models=models), "overloaded").chain.model == 1, "no budget, nothing to be short of"


def test_an_outage_parks_for_ever_longer_and_anything_else_until_a_person_comes() -> None:
    state = begun()
    waits: list[float] = []
    for _ in range(7):
        state = failed(state, "overloaded", transient=30)
        assert isinstance(decide(state), Wait)
        assert state.parking.parked is not None
        due = state.parking.parked.resumes_at
        assert due is not None
        waits.append((due - NOW).total_seconds())
        assert fold(state, RetryDue(at=due - timedelta(seconds=1))) == state, "not yet"
        state = fold(state, RetryDue(at=due))
        assert isinstance(decide(state), CallModel)
    assert waits == [30, 60, 120, 240, 240, 240, 240]
    state = failed(begun(), "rate_limited", transient=7200)
    assert state.parking.parked is not None
    assert state.parking.parked.resumes_at == NOW + timedelta(hours=2), "a provider's own delay is kept"
    answered = fold(asked(state), reply(asked(state), text="hi"))
    assert answered.parking.auto_retries == 0
    mended = failed(begun(), "authentication")
    assert mended.parking.parked is not None
    assert mended.parking.parked.resumes_at is None


def test_what_was_never_asked_makes_no_nap_longer() -> None:
    state = begun()
    waits: list[float] = []
    for kind in ("circuit_open", "overloaded", "circuit_open", "circuit_open", "overloaded"):
        state = failed(state, kind, transient=30)
        assert state.parking.parked is not None
        assert state.parking.parked.resumes_at is not None
        waits.append((state.parking.parked.resumes_at - NOW).total_seconds())
        state = fold(state, RetryDue(at=state.parking.parked.resumes_at))
    assert waits == [30, 30, 30, 30, 60]


@pytest.mark.parametrize("event", [Resumed(), Redriven()], ids=["resume", "redrive"])
def test_who_is_told_to_go_on_insists_until_a_model_answers_or_it_is_parked_again(event: Event) -> None:
    parked = failed(begun(), "circuit_open", transient=30)
    assert parked.parking.parked is not None
    assert parked.parking.parked.resumes_at is not None
    by_itself = fold(parked, RetryDue(at=parked.parking.parked.resumes_at))
    told = fold(parked, event)
    for state, force_once in ((by_itself, False), (told, True)):
        command = decide(state)
        assert isinstance(command, CallModel)
        assert model_input(state, command).force_once is force_once
    assert not failed(told, "circuit_open", transient=30).parking.force_once
    assert not fold(asked(told), reply(asked(told), text="hi")).parking.force_once
    assert fold(failed(begun(), "malformed_reply"), event).parking.force_once, "which opens circuits too"
    assert not fold(begun(), Resumed()).parking.force_once, "one that was not parked has nothing to insist on"


def test_a_parked_run_goes_on_as_another_agent_and_keeps_what_was_said_and_spent() -> None:
    state = begun(models=chain({}))
    state = fold(asked(state), reply(asked(state), call("work")))
    [waiting] = state.step.calls
    result = ToolResult(call_id=waiting.call.id, name="work", content=[Text(text="done")])
    state = fold(fold(state, CallsStarted(ids=(waiting.call.id,))), CallReturned(result=result))
    state = failed(failed(state, "payment"), "payment")
    assert state.parking.parked is not None
    spec = spec_of(models=chain(), instructions="Help better.", limits=Limits(steps=7))
    after = fold(state, Redriven(spec=spec, limits=Limits(cost_usd=3)))
    assert (after.parking.parked, after.chain.model, after.spec.instructions) == (None, 0, "Help better.")
    assert (after.limits.steps, after.limits.cost_usd) == (7, 3)
    assert (after.messages, after.ledger.usage, after.ledger.steps) == (
        state.messages,
        state.ledger.usage,
        state.ledger.steps,
    )
    assert isinstance(decide(after), CallModel)
    assert fold(after, Redriven(spec=spec_of())) == after, "what is not parked is not redriven"


def failing(
    fallback: ToolFallback | None, kind: str = "tool_error", effect: str = "read", **more: Any
) -> AgentState:
    tools = (tool_spec("work", fallback=fallback, effect=effect), tool_spec("other"))
    state = asked(begun(tools=tools))
    state = fold(state, reply(state, call("work", n=1)))
    [waiting] = state.step.calls
    state = fold(state, CallsStarted(ids=(waiting.call.id,)))
    said: list[ResultPart] = [Text(text="it broke")]
    failed_with: dict[str, Any] = {"is_error": True, "error_kind": kind, **more}
    result = ToolResult(call_id=waiting.call.id, name="work", content=said, **failed_with)
    return fold(state, CallReturned(result=result))


def test_another_tool_is_called_in_place_of_one_that_failed_and_the_model_is_told() -> None:
    state = failing(ToolFallback(tool="other"))
    [waiting] = state.step.calls
    assert (waiting.state, waiting.stand_in) == ("ready", "other")
    state = fold(state, CallsStarted(ids=(waiting.call.id,)))
    result = ToolResult(call_id=waiting.call.id, name="other", content=[Text(text="42")])
    state = fold(state, CallReturned(result=result))
    [given] = state.messages[-1].tool_results
    assert (given.name, given.is_error) == ("work", False)
    assert given.text == "(Answered by 'other', because 'work' failed: it broke)\n42"
    assert given.stand_in == "other"


def test_a_write_that_may_have_taken_effect_is_not_done_again_by_another() -> None:
    fallback = ToolFallback(tool="other")
    assert failing(fallback, "tool_timeout", effect="read").step.calls
    [given] = failing(fallback, "tool_timeout", effect="write").messages[-1].tool_results
    assert given.is_error
    assert failing(fallback, "tool_error", effect="write").step.calls, "it said itself that it failed"
    [given] = failing(fallback, "tool_error", effect="write", may_have_effect=True).messages[-1].tool_results
    assert given.is_error


def test_when_the_other_tool_fails_too_the_model_hears_of_both() -> None:
    state = failing(ToolFallback(tool="other"))
    [waiting] = state.step.calls
    state = fold(state, CallsStarted(ids=(waiting.call.id,)))
    said: list[ResultPart] = [Text(text="it is closed")]
    result = ToolResult(call_id=waiting.call.id, name="other", content=said, is_error=True)
    state = fold(state, CallReturned(result=result))
    [given] = state.messages[-1].tool_results
    assert given.is_error
    assert "it broke" in given.text
    assert "it is closed" in given.text
    assert given.stand_in is None, "nobody answered"


def test_a_default_answer_takes_the_place_of_an_error() -> None:
    [given] = failing(ToolFallback(answer="no data today")).messages[-1].tool_results
    assert (given.is_error, given.stand_in) == (False, "answer")
    assert given.text.startswith("no data today\n")
    assert "it broke" in given.text


COVERED = [kind for kind, rule in RULES.items() if rule.stands_in]


@pytest.mark.parametrize("kind", sorted(set(RULES) - set(COVERED)))
def test_what_is_the_callers_fault_is_told_and_not_covered_up(kind: str) -> None:
    [given] = failing(ToolFallback(answer="no data today"), kind).messages[-1].tool_results
    assert (given.is_error, given.text) == (True, "it broke")


def test_an_outage_has_one_beginning_and_its_parent_hears_of_it_once() -> None:
    branch = ChildInput(
        lineage=Lineage(parent="p", key="a-1", spec_digest="x", as_of=NOW),
        lease=Lease(lender="p", amount=Amount(tool_calls=9)),
    )
    state = initial(RunRequest(agent="a", prompt="go"), spec_of(), NOW, Origin(id="p/~a-1", child=branch))
    told = 0
    for n in range(5):
        state = failed(state, "overloaded", transient=30, at=100 * n)
        assert state.parking.parked is not None
        assert state.parking.parked.since == NOW
        report, after = report_due(state, None)
        told += report is not None
        state = fold(state, after)
        assert state.parking.parked is not None
        due = state.parking.parked.resumes_at
        assert due is not None
        state = fold(state, RetryDue(at=due))
        report, after = report_due(asked(state), None)
        assert report is None, "between two naps nothing is better"
    assert told == 1
    state = asked(state)
    state = fold(state, reply(state, call("work")))
    report, _ = report_due(state, None)
    assert report is not None
    assert report.waiting == []


def test_bounds_that_a_person_set_stay_whatever_else_is_changed_later() -> None:
    limits = Limits(steps=3, per_tool={"work": 1, "pay": 1})
    state = failed(begun(limits=limits), "payment")
    state = fold(state, Redriven(limits=Limits(steps=100, per_tool={"work": 5})))
    assert (state.limits.steps, state.limits.per_tool) == (100, {"work": 5, "pay": 1})
    state = failed(state, "payment")
    state = fold(state, Redriven(spec=spec_of(limits=Limits(steps=7, tool_calls=2))))
    assert (state.limits.steps, state.limits.tool_calls) == (100, 2)
    assert state.limits.per_tool["work"] == 5


def test_what_stands_in_keeps_its_own_bounds() -> None:
    tools = (
        tool_spec("work", fallback=ToolFallback(tool="other")),
        tool_spec("other", concurrency=1),
    )
    state = asked(begun(tools=tools, limits=Limits(per_tool={"other": 2})))
    state = fold(state, reply(state, *(call("work", n=n) for n in range(4))))
    ids = tuple(one.call.id for one in state.step.calls)
    state = fold(state, CallsStarted(ids=ids))
    for call_id in ids:
        said: list[ResultPart] = [Text(text="it broke")]
        failure = ToolResult(
            call_id=call_id, name="work", content=said, is_error=True, error_kind="tool_error"
        )
        state = fold(state, CallReturned(result=failure))
    assert [one.state for one in state.step.calls] == ["ready", "ready", "done", "done"]
    command = decide(state)
    assert isinstance(command, CallTools)
    assert len(command.calls) == 1, "its concurrency is 1"


def test_one_that_answered_all_the_same_is_no_failure_to_those_above() -> None:
    failure = Failure(kind="payment", message="x")
    outcome = RunResult(agent="a", output="call us", stop_reason="error", error=failure, answered=True)
    assert not is_error(outcome)
    assert "call us" in result_text(outcome)


@tool
async def work(n: int) -> str:
    """Work."""
    return str(n)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Fallback(model="a:b", on={"sunshine"}), "sunshine"),
        (lambda: Fallback(model="a:b", on="timeout"), "timeout"),
        (lambda: Fallback(model="a:b", on=()), "never be taken"),
        (lambda: Fallback(model="a:b", least_cost_left_usd=-1), "0 or more"),
        (ToolFallback, "exactly one"),
        (lambda: ToolFallback(tool="x", answer="y"), "exactly one"),
        (lambda: ToolFallback(remembered=timedelta()), "positive"),
        (lambda: tool(fallback=ToolFallback(tool="work"))(work.function), "its own fallback"),
        (
            lambda: tool(effect="write", fallback=ToolFallback(remembered=timedelta(hours=1)))(work.function),
            "remembered",
        ),
        (
            lambda: Agent(
                name="a",
                model="a:b",
                tools=[tool(name="t", fallback=ToolFallback(tool="gone"))(work.function)],
            ),
            "'gone', which is not one of",
        ),
        (lambda: Agent(name="a", model="a:b", on_failure="hope"), "park, fail, answer"),  # type: ignore[arg-type]
    ],
)
def test_what_could_never_work_is_refused_when_it_is_written(make: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        make()


def test_agents_that_use_none_of_it_keep_their_hash() -> None:
    plain = Agent(name="a", model="a:b", fallbacks=["c:d"], tools=[work]).spec()
    shown = plain.model_dump_json()
    assert not any(word in shown for word in ("sticky", "least_cost", "fallback", '"on"'))


def test_smaller_model_can_read_on() -> None:
    """A fallback with room for less of the results than the model before it is offered the rest."""
    small = {"config": ModelConfig(name="small:x", context_tokens=8_000, max_tokens=1_000)}
    state = asked(begun(models=chain(small)))
    state = fold(fold(state, reply(state, call("work"))), CallsStarted(ids=("call-1-1",)))
    state = fold(state, CallReturned(result=result("call-1-1", text="a word " * 4_000)))
    state = fold(state, StepBegan())
    assert not state.transcript.spilled
    state = fold(state, ModelFailed(failure=ModelFailure(kind="overloaded", message="why"), at=NOW))
    assert (state.chain.model, state.transcript.spilled) == (1, True)
