"""Context strategies: a summary replaces what leaves the window, and never holds up the run."""

import json
from dataclasses import replace
from typing import Any

import pytest

from perdure.activities.content.summary import summary_request, with_summary
from perdure.activities.content.transcripts import ModelView
from perdure.agent import Agent
from perdure.context import SlidingWindow, Summary
from perdure.errors import DefinitionError
from perdure.limits import Limits
from perdure.messages import Message, ReplyMeta, Text, Usage
from perdure.model import ModelConfig
from perdure.wire.effects import ModelFailure, ModelOutcome, summary_digest
from perdure.wire.spec import ModelSpec
from perdure.workflows.engine.budget import pending_amount
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.commands import CallModel, CancelPending, MoveWindow, Summarize, Wait
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import (
    CallReturned,
    CallsStarted,
    EndRequested,
    GraceExpired,
    Summarized,
    SummaryBegan,
    WindowMoved,
)
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.state import AgentState
from perdure.workflows.model_inputs import model_input, summary_input

from .runs import PRICE, answered, begun, call, program_of, result

SUMMARY = Summary(messages=6, tokens=None, keep=0.5)
DEAR = ModelSpec(
    config=ModelConfig(name="scripted:dear"), price=PRICE.model_copy(update={"output": 900_000_000})
)


def tool_done(state: AgentState) -> AgentState:
    [open_call] = state.step.calls
    state = fold(state, CallsStarted(ids=(open_call.call.id,)))
    return fold(state, CallReturned(result=result(open_call.call.id)))


def overfull(**changed: Any) -> AgentState:
    """A run whose next model call would see too much."""
    state = begun(context=SUMMARY, **changed)
    for _ in range(3):
        state = tool_done(answered(state, call("work")))
    return state


def written(text: str, stop: Any = "end_turn", cost: int | None = 7) -> Summarized:
    meta = ReplyMeta(step=1, model="m", usage=Usage(input_tokens=10, output_tokens=2), cost_microusd=cost)
    message = Message(role="assistant", parts=[Text(text=text)], meta=meta)
    return Summarized(outcome=ModelOutcome(message=message, stop=stop))


def began(state: AgentState) -> AgentState:
    command = decide(state)
    assert isinstance(command, Summarize)
    return fold(state, SummaryBegan(stop=command.stop))


def test_summary_replaces_old_messages() -> None:
    """The window moves, the model gets the summary, its cost is booked, and the transcript is unchanged."""
    state = overfull()
    before = state
    state = began(state)
    assert decide(state) == Wait()
    assert state.is_busy
    state = fold(state, written("The user wants bread."))
    assert state.messages == before.messages
    assert state.transcript.summary == "The user wants bread."
    assert state.transcript.window_start > before.transcript.window_start
    assert state.ledger.cost_microusd == before.ledger.cost_microusd + 7
    assert state.ledger.steps == before.ledger.steps, "a summary is no step"
    command = decide(state)
    assert isinstance(command, CallModel)
    assert model_input(state, command).summary == summary_digest("The user wants bread.")


def test_overflow_summarizes_what_leaves() -> None:
    """A provider with less context than the strategy knows of: what its overflow moves out is summarized first."""
    state = begun(context=Summary(messages=100, tokens=None))
    for _ in range(4):
        state = tool_done(answered(state, call("work")))
    state = answered(state, text="too", stop="context_overflow")
    state = fold(began(state), written("bread"))
    assert (state.transcript.summary, state.transcript.window_start > 0) == ("bread", True)
    assert isinstance(decide(state), CallModel)


def test_next_summary_covers_the_earlier() -> None:
    state = fold(began(overfull()), written("first"))
    while not isinstance(command := decide(state), Summarize):
        state = tool_done(answered(state, call("work")))
    call_input = summary_input(state, command)
    assert (call_input.summary, call_input.summarize) == (summary_digest("first"), command.stop)
    assert not call_input.stream
    state = fold(fold(state, SummaryBegan(stop=command.stop)), written("second"))
    assert state.transcript.summary == "second"


@pytest.mark.parametrize(
    "event",
    [
        written(""),
        written("I will not", stop="refusal"),
        written("half of", stop="cancelled"),
        Summarized(failure=ModelFailure(kind="overloaded", message="no", wasted_microusd=3)),
        Summarized(failure=ModelFailure(kind="stale", message="no")),
    ],
)
def test_failed_summary_slides(event: Summarized) -> None:
    """Without a summary the window slides, the earlier summary stays, and the run is not parked."""
    state = overfull()
    state = replace(state, transcript=replace(state.transcript, summary="earlier"))
    after = fold(began(state), event)
    assert after.transcript.summary == "earlier"
    assert after.transcript.window_start > state.transcript.window_start
    assert after.parking.parked is None
    assert isinstance(decide(after), CallModel)
    assert after.ledger.cost_microusd >= state.ledger.cost_microusd


def test_cut_summary_is_used() -> None:
    """A summary that its length has cut was paid for, and takes the place of the earlier one."""
    state = overfull()
    state = replace(state, transcript=replace(state.transcript, summary="earlier"))
    assert fold(began(state), written("half of", stop="max_tokens")).transcript.summary == "half of"


@pytest.mark.parametrize("most", [100, 256, 4096])
@pytest.mark.parametrize("left", [50, 200, 999, 1100, 4000])
def test_summary_is_begun_with_room_for_a_useful_one(most: int, left: int) -> None:
    """Its share of what is left must allow 256 tokens, or what its model may write at most."""
    spec = overfull().spec
    config = spec.models[0].config.model_copy(update={"max_tokens": most})
    models = (spec.models[0].model_copy(update={"config": config}),)
    state = overfull(models=models)
    used = state.ledger.usage.output_tokens
    command = decide(replace(state, limits=Limits(steps=None, output_tokens=used + left)))
    assert isinstance(command, Summarize) == (left // 4 >= min(most, 256))


@pytest.mark.parametrize("limits", [Limits(steps=3), Limits(cost_usd=0.002)])
def test_limits_forbid_the_summary(limits: Limits) -> None:
    """Where a limit leaves no room for the summary, the window slides without it."""
    state = overfull(limits=limits, summary_model=DEAR)
    assert isinstance(decide(state), MoveWindow)


def test_allowance_bounds_the_summary() -> None:
    free = decide(overfull())
    short = decide(overfull(limits=Limits(steps=None, output_tokens=2000)))
    assert isinstance(free, Summarize)
    assert isinstance(short, Summarize)
    assert 256 <= short.allowance.max_tokens <= 500 < free.allowance.max_tokens


def test_own_model_reserves_its_price() -> None:
    """While a dearer model writes the summary, its price is reserved."""
    dear, own = began(overfull(summary_model=DEAR)), began(overfull())
    assert (pending_amount(dear).cost_microusd or 0) > (pending_amount(own).cost_microusd or 0)


def test_end_during_summary() -> None:
    """A run that ends while a summary is written ends; a late summary changes nothing."""
    state = fold(began(overfull()), EndRequested(reason="stopped"))
    assert decide(state) == CancelPending()
    cancelled = fold(state, written("half", stop="cancelled"))
    assert (cancelled.is_busy, cancelled.transcript.summary) == (False, "")
    assert cancelled.ledger.cost_microusd == state.ledger.cost_microusd + 7
    given_up = fold(state, GraceExpired())
    assert not given_up.is_busy
    assert fold(given_up, written("late")) == given_up


def test_summary_survives_continue_as_new() -> None:
    state = fold(began(overfull()), written("kept"))
    carried = json.loads(json.dumps(pack(program_of(state), state, HistoryFormat())))
    after, _ = unpack(program_of(state), carried[0], carried[1:])
    assert after == state


def test_window_without_summary_is_as_before() -> None:
    """A sliding window asks for no effect, and its input has no further field."""
    state = overfull()
    state = replace(state, spec=state.spec.model_copy(update={"context": SlidingWindow(messages=6)}))
    command = decide(state)
    assert isinstance(command, MoveWindow)
    state = fold(state, WindowMoved(start=command.start))
    asked = decide(state)
    assert isinstance(asked, CallModel)
    assert not {"summary", "summarize"} & model_input(state, asked).model_dump(mode="json").keys()
    plain = Agent(name="a", model="scripted:x").spec()
    assert "summary_model" not in plain.model_dump(mode="json")


def test_request_holds_what_leaves() -> None:
    """The summary's request holds the leaving messages and the earlier summary as data, without the task."""
    state = fold(began(overfull()), written("first"))
    while not isinstance(command := decide(state), Summarize):
        state = tool_done(answered(state, call("work")))
    call_input = summary_input(state, command)
    view = call_input.view
    shown = state.transcript.visible
    config = state.spec.models[0].config
    seen = ModelView(messages=shown, blobs=(), summary="first")
    request = summary_request(state.spec, config, call_input, seen)
    text = request.messages[0].text
    leaving = state.messages[view.start : command.stop]
    assert text.count("calls work(") == sum(len(message.tool_calls) for message in leaving)
    assert "<earlier_summary>\nfirst\n" in text
    assert "the task" not in text
    assert (request.tools, len(request.messages)) == ((), 1)
    later = with_summary(call_input, seen)
    assert [later[0], *later[2:]] == list(shown)
    assert later[1].role == "user"
    assert later[1].text.endswith("\nfirst")


def test_summary_model_is_pinned() -> None:
    agent = Agent(name="a", model="scripted:x", context=Summary(model="scripted:small"))
    assert [config.name for config in agent.all_models] == ["scripted:x", "scripted:small"]
    spec = agent.spec()
    assert spec.summary_model is not None
    assert spec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(DefinitionError, match="unknown:small"):
        Agent(
            name="a",
            model="scripted:x",
            context=Summary(model="unknown:small"),
            limits=Limits(cost_usd=1),
        ).spec()
    with pytest.raises(DefinitionError):
        Summary(model="small")
