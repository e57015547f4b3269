"""The window: what a model sees of a session, whatever people say, tools answer and providers refuse."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.context import SlidingWindow
from perdure.errors import DefinitionError
from perdure.fitting import most_result_tokens, window_tokens
from perdure.messages import Message
from perdure.model import ModelConfig
from perdure.wire.effects import ModelFailure
from perdure.wire.spec import ModelSpec
from perdure.workflows.engine.commands import CallModel, CallTools, CloseTurn, MoveWindow, OpenTurn
from perdure.workflows.engine.events import (
    CallReturned,
    CallsStarted,
    ModelFailed,
    Said,
    StepBegan,
    TurnBegan,
    TurnEnded,
    WindowMoved,
)
from perdure.workflows.engine.input_tokens import unmoved_tokens, visible_tokens
from perdure.workflows.engine.state import AgentState, Utterance
from perdure.workflows.engine.window import slide

from .runs import NOW, PRICE, call, reply, result
from .test_session_fold import decide, fold, opened

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from([1, 30, 900])),
        st.tuples(st.just("steer"), st.sampled_from([1, 300])),
        st.tuples(st.just("call"), st.sampled_from([1, 2, 600])),
        st.tuples(st.just("answer"), st.just(1)),
        st.tuples(st.just("fail"), st.just(1)),
        st.tuples(st.just("overflow"), st.just(1)),
    ),
    max_size=40,
)
BOUNDS = st.tuples(st.none() | st.integers(4, 8), st.none() | st.integers(500, 1500))


def play(state: AgentState, moves: list[tuple[str, int]]) -> None:
    """Let these things happen one after the other, and look at each model call on the way."""
    for number, (what, size) in enumerate(moves):
        state = settle(state)
        asking = state.step.asking_model
        match what:
            case "say" | "steer":
                heard = Utterance(id=f"m{number}", message=Message.user(f"word {number} " * size))
                state = fold(state, Said(utterance=heard, when_busy="queue" if what == "say" else "steer"))
            case "call" if asking:
                state = fold(state, reply(state, call("work"), call("work")))
                for made in state.step.calls:
                    state = fold(state, CallsStarted(ids=(made.call.id,)))
                for made in state.step.calls:
                    state = fold(state, CallReturned(result=result(made.call.id, text="row " * size)))
            case "answer" if asking:
                state = fold(state, reply(state, text="so it is"))
            case "fail" if asking:
                state = fold(state, ModelFailed(failure=ModelFailure(kind="stale", message="no")))
            case "overflow" if asking:
                state = fold(state, ModelFailed(failure=ModelFailure(kind="context_overflow", message="no")))
            case _:
                continue


def settle(state: AgentState) -> AgentState:
    """Carry out commands until a model is asked, or nothing is left to do."""
    for _ in range(20):
        match decide(state):
            case OpenTurn():
                state = fold(state, TurnBegan(at=NOW))
            case CloseTurn() as command:
                state = fold(state, TurnEnded(end=command.end, at=NOW))
            case MoveWindow() as command:
                before = state
                state = fold(state, WindowMoved(start=command.start))
                check_bounds(before, state)
            case CallModel():
                state = fold(state, StepBegan())
                check_view(state)
            case CallTools():
                raise AssertionError("calls are answered at once here")
            case _:
                return state
    raise AssertionError("decide and fold go round in circles")


def check_view(state: AgentState) -> None:
    """Look at what the model sees in the call that has just begun."""
    transcript, visible = state.transcript, state.transcript.visible
    assert state.messages[state.first_message] in visible, "the turn's own request"
    read = max((i for i, m in enumerate(state.messages) if m.role == "assistant"), default=-1)
    newest = enumerate(state.messages[read + 1 :], read + 1)
    unread = [m for i, m in newest if m.role == "user" and i not in transcript.unsent]
    assert all(message in visible for message in unread), "nobody has read these yet"
    assert visible[0].role == "user", "providers want a person's message first"
    for before, message in zip((None, *visible), visible, strict=False):
        if message.role == "tool":
            assert before is not None
            assert before.tool_calls, "results stand behind their calls"
        if before is not None and before.tool_calls:
            assert message.role == "tool", "calls stand before their results"
    pinned = transcript.pinned
    assert pinned is None or pinned < transcript.window_start, "nothing is shown twice"


def check_bounds(before: AgentState, state: AgentState) -> None:
    """Look at a window that has just moved: within its bounds, or as short as it may be."""
    window, transcript = state.spec.context, state.transcript
    shortest = slide(state, most=0, tokens=0) == transcript.window_start
    assert before.transcript.window_start < transcript.window_start
    fits = (window.messages is None or len(transcript.visible) <= window.messages) and (
        window.tokens is None or visible_tokens(state) <= max(window.tokens, unmoved_tokens(state))
    )
    assert fits or shortest


@given(moves=MOVES, bounds=BOUNDS)
def test_model_sees_request_and_unread(moves: list[tuple[str, int]], bounds: tuple[Any, Any]) -> None:
    """The request in hand, what nobody has read, and whole exchanges are in each call's view; bounds are kept."""
    window = SlidingWindow(messages=bounds[0], tokens=bounds[1])
    play(opened(context=window), [("say", 1), *moves])


def test_pin_changes_only_when_the_window_moves() -> None:
    """A new turn leaves the view's beginning as it is, so that the provider's prompt cache holds."""
    state = opened(context=SlidingWindow(messages=6))
    heard = Utterance(id="m1", message=Message.user("the first question"))
    state = settle(fold(state, Said(utterance=heard, when_busy="queue")))
    for _ in range(4):
        state = fold(state, reply(state, call("work")))
        [made] = state.step.calls
        state = fold(state, CallsStarted(ids=(made.call.id,)))
        state = settle(fold(state, CallReturned(result=result(made.call.id))))
    before = state.transcript
    assert (before.pinned, before.visible[0].text) == (0, "the first question")
    state = settle(fold(state, reply(state, text="done")))
    heard = Utterance(id="m2", message=Message.user("the second question"))
    state = settle(fold(state, Said(utterance=heard, when_busy="queue")))
    assert state.first_message > before.window_start
    assert (
        state.transcript.visible[0] == before.visible[0]
        or state.transcript.window_start > before.window_start
    )


@pytest.mark.parametrize("unread", [1, 3, 9])
def test_failed_call_loses_no_message(unread: int) -> None:
    """Messages that came in mid-run stay visible when the call that was to read them fails, however many."""
    state = opened(context=SlidingWindow(messages=4))
    heard = Utterance(id="m", message=Message.user("the question"))
    state = settle(fold(state, Said(utterance=heard, when_busy="queue")))
    for n in range(unread):
        more = Utterance(id=f"m{n}", message=Message.user(f"and {n}"))
        state = fold(state, Said(utterance=more, when_busy="steer"))
    state = settle(fold(state, reply(state, text="wait")))
    for kind in ("stale", "context_overflow"):
        state = settle(fold(state, ModelFailed(failure=ModelFailure(kind=kind, message="no"))))
        if state.step.asking_model:
            shown = [message.text for message in state.transcript.visible]
            assert [f"and {n}" for n in range(unread)] == [text for text in shown if text.startswith("and")]
            assert "the question" in shown


def test_known_context_bounds_the_window() -> None:
    """Of a model whose context is known, the window and a step's results leave room for the reply."""
    small = ModelConfig(name="scripted:small", context_tokens=3000, max_tokens=1000)
    assert window_tokens(SlidingWindow(), small) == 2000
    assert window_tokens(SlidingWindow(tokens=500), small) == 500
    assert most_result_tokens(SlidingWindow(), small, 0) == 1000
    assert "context_tokens" not in ModelConfig(name="scripted:x").model_dump(mode="json")
    state = opened(models=(ModelSpec(config=small, price=PRICE),))
    heard = Utterance(id="m", message=Message.user("the question"))
    state = settle(fold(state, Said(utterance=heard, when_busy="queue")))
    for _ in range(12):
        state = fold(state, reply(state, call("work")))
        [made] = state.step.calls
        state = fold(state, CallsStarted(ids=(made.call.id,)))
        state = settle(fold(state, CallReturned(result=result(made.call.id, text="row " * 300))))
        assert state.transcript.context_tokens <= 2000
    assert state.transcript.window_start > 0
    with pytest.raises(DefinitionError, match="less than context_tokens"):
        ModelConfig(name="scripted:x", context_tokens=4096)
