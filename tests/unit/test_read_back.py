"""Reading back: what has left the window stays in reach, for those that may read it, and costs nobody else anything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agent import Agent
from perdure.context import SlidingWindow, Summary
from perdure.errors import DefinitionError
from perdure.limits import Limits
from perdure.messages import Image, Message, ToolResult
from perdure.tools import tool
from perdure.workflows.engine.calls import open_calls
from perdure.workflows.engine.commands import CallModel, MoveWindow, Summarize
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import CallReturned, CallsStarted, WindowMoved
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.read_on import offers_read_back
from perdure.workflows.engine.state import AgentState
from perdure.workflows.model_inputs import model_input
from perdure.written import written_message

from .runs import NOW, answered, begun, call, result

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=600), min_size=3, max_size=8)


def left(texts: list[str], context: Any, **changed: Any) -> AgentState:
    """A run of that many steps, of which all but the newest have left the window."""
    state = begun(context=context, **changed)
    for number, text in enumerate(texts, 1):
        state = answered(state, call("work"))
        made = f"call-{number}-1"
        state = fold(state, CallsStarted(ids=(made,)))
        state = fold(state, CallReturned(result=result(made, text=text)))
        command = decide(state)
        if isinstance(command, MoveWindow):
            state = fold(state, WindowMoved(start=command.start))
        elif isinstance(command, Summarize):
            state = fold(state, WindowMoved(start=command.stop))
    return state


def read(state: AgentState, **arguments: Any) -> str:
    [made] = open_calls(state, [call("read_back", **arguments)], NOW).calls
    assert made.state == "done", "no activity is needed"
    assert made.result is not None
    return made.result.text


WINDOW = SlidingWindow(messages=4, tokens=None, read_back=True)


@pytest.mark.parametrize(
    ("context", "offered"),
    [
        (WINDOW, True),
        (SlidingWindow(messages=4), False),
        (Summary(messages=4, tokens=None), True),
        (Summary(messages=4, tokens=None, read_back=False), False),
    ],
)
def test_offered_once_something_has_left(context: Any, offered: bool) -> None:
    """The tool is offered once messages have left the window, where the strategy says so; else no byte is written."""
    begun_ = begun(context=context)
    assert not offers_read_back(begun_)
    state = left(["a", "b", "c", "d"], context)
    assert offers_read_back(state) is offered
    command = decide(state)
    assert isinstance(command, CallModel)
    assert ("offer_read_back" in model_input(state, command).model_dump(mode="json")) is offered
    [made] = open_calls(state, [call("read_back")], NOW).calls
    assert made.result is not None
    assert made.result.is_error is not offered


def test_unused_strategies_write_nothing() -> None:
    """Specs that leave the settings alone are the same bytes as before the settings existed."""
    for context in (SlidingWindow(), Summary()):
        assert not {"read_back", "budget_share"} & context.model_dump(mode="json").keys()


@given(texts=TEXTS, words=st.text(max_size=20), first=st.integers(-3, 99), last=st.integers(-3, 99))
def test_answer_is_bounded_and_total(texts: list[str], words: str, first: int, last: int) -> None:
    """Whatever is asked for, the answer fits the bound of a result, and never shows what is in the window."""
    state = left([*texts, "IN THE WINDOW"], WINDOW, result_preview_bytes=512)
    for arguments in ({}, {"words": words}, {"first": first}, {"first": first, "last": last}):
        text = read(state, **arguments)
        assert len(text.encode(errors="replace")) <= 512 + 200
        assert "IN THE WINDOW" not in text


def test_every_left_message_is_in_reach() -> None:
    """By numbers the model reads every message that has left, to the last, and by words the one that holds them."""
    texts = [f"fact {number}: " + "x" * 200 + f" and code C-{number:03}" for number in range(30)]
    state = left(texts, WINDOW, result_preview_bytes=1024)
    gone = state.transcript.window_start
    assert "C-007" in read(state, words="c-007")
    seen, first = "", 1
    for _ in range(60):
        text = read(state, first=first, last=gone)
        seen += text
        if "go on with first=" not in text:
            break
        first = int(text.rpartition("first=")[2].strip("]"))
    told = [f"C-{number:03}" for number in range(30)]
    hidden = state.messages[:gone]
    assert [code for code in told if any(code in m.text for m in hidden) and code not in seen] == []


def test_pinned_request_is_not_repeated() -> None:
    state = left(["a", "b", "c", "d"], WINDOW)
    assert state.transcript.pinned == 0
    assert "the task" not in read(state, first=1)


def test_name_is_reserved() -> None:
    @tool
    def read_back() -> str:
        """Read back."""
        return ""

    with pytest.raises(DefinitionError, match="read_back"):
        Agent(name="a", model="scripted:x", tools=[read_back])


def test_summary_keeps_to_its_share() -> None:
    """A summary may use its share of what is left of each bound; without room in it the window slides."""
    texts = ["row " * 50] * 3
    outcomes: list[Any] = []
    for share in (0.9, 0.0001):
        context = Summary(messages=6, tokens=None, keep=0.5, budget_share=share)
        state = begun(context=context, limits=Limits(steps=None, total_tokens=200_000))
        for number, text in enumerate(texts, 1):
            state = answered(state, call("work"))
            state = fold(state, CallsStarted(ids=(f"call-{number}-1",)))
            state = fold(state, CallReturned(result=result(f"call-{number}-1", text=text)))
        outcomes.append(decide(state))
    assert isinstance(outcomes[0], Summarize)
    assert isinstance(outcomes[1], MoveWindow)


def test_what_has_no_text_is_written_too() -> None:
    """A result without text, with media alone, or that ends in a colon, is written: its call must not stand alone."""
    empty, shot = (
        ToolResult(call_id="a", name="save"),
        ToolResult(call_id="b", name="shot", content=[Image(data="eA==")]),
    )
    lines = written_message(Message(role="tool", parts=[empty, shot]), 100).splitlines()
    assert lines == ["tool: save returned: (nothing)", "tool: shot returned: [image]"]
    assert written_message(Message.user("So: "), 100) == "user: So: "
