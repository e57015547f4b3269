"""Watching: whatever is seen in whatever bits, what is told adds up to what was said."""

from hypothesis import given
from hypothesis import strategies as st

from perdure.effects import Progress
from perdure.messages import Message, ReplyMeta, Text, ToolCall, ToolResult
from perdure.starter.diff import Pending, Seen
from perdure.starter.events import (
    Event,
    MessageFinished,
    Reader,
    Retrying,
    TextDelta,
    TextRestarted,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from perdure.starter.steps import steps_of
from perdure.wire import CallStatus, RunStatus

from .runs import call

ANSWER = st.text("abc ", max_size=30)
WINDOW = 8
Heard = tuple[list[tuple[int, str]], int, str]
"""Of one step: what was heard, as (attempt, text so far), then the attempt and text of the message."""


def window(step: int, attempt: int, said: str, seq: int = 1) -> Pending:
    offset = max(len(said) - WINDOW, 0)
    progress = Progress(call=f"step-{step}", attempt=attempt, seq=seq, offset=offset, text=said[offset:])
    return Pending(progress=progress, attempt=attempt, error=None)


def message(step: int, attempts: int, text: str) -> Message:
    meta = ReplyMeta(step=step, model="m", attempts=attempts)
    return Message(role="assistant", parts=[Text(text=text)] if text else [], meta=meta)


def assert_told_in_order(events: list[Event]) -> None:
    """Within one step, pieces follow each other without gap or overlap, until it begins anew."""
    told: dict[int, str] = {}
    for event in events:
        match event:
            case TextDelta():
                assert event.offset == len(told.get(event.step, ""))
                told[event.step] = told.get(event.step, "") + event.text
            case TextRestarted():
                told[event.step] = ""
            case MessageFinished():
                assert told.get(event.step, "") == event.text
            case _:
                pass


@st.composite
def watched(draw: st.DrawFn) -> list[Heard]:
    """Attempts are counted anew when another model takes over, so their numbers may fall or repeat."""
    steps: list[Heard] = []
    for _ in range(draw(st.integers(1, 3))):
        heard: list[tuple[int, str]] = []
        attempt, answer = 1, ""
        for _ in range(draw(st.integers(1, 3))):
            attempt, answer = draw(st.integers(1, 3)), draw(ANSWER)
            ends = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=4)))
            heard += [(attempt, answer[:end]) for end in ends]
        steps.append((heard, attempt, answer))
    return steps


@given(watched(), st.booleans())
def test_what_is_told_adds_up_to_what_was_said(run: list[Heard], late: bool) -> None:
    seen, events, reader = Seen(), list[Event](), Reader()
    for step, (heard, attempt, answer) in enumerate(run, 1):
        for seq, (of_attempt, said) in enumerate(heard, 1):
            events += seen.of_flights([window(step, of_attempt, said, seq)])
        events += seen.of_messages([message(step, attempt, answer)])
        if late and heard:  # the server's description may be older than the transcript
            assert list(seen.of_flights([window(step, *heard[-1])])) == []
    assert_told_in_order(events)
    for event in events:
        reader.feed(event)
    for step, (_, _, answer) in enumerate(run, 1):
        assert reader.text(step) == answer


def test_another_models_answer_is_not_glued_to_the_first_ones() -> None:
    seen = Seen()
    events = [*seen.of_flights([window(1, 1, "Hello")]), *seen.of_flights([window(1, 1, "Good day")])]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]
    assert_told_in_order(events)


def test_an_answer_begun_anew_with_a_smaller_attempt_is_told_at_once() -> None:
    seen = Seen()
    events = [*seen.of_flights([window(1, 6, "Hel")]), *seen.of_flights([window(1, 1, "Good")])]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]


def test_a_hole_is_held_back_until_the_message_is_there() -> None:
    seen = Seen()
    assert list(seen.of_flights([window(1, 1, "x" * 20)])) == []
    [delta, finished] = seen.of_messages([message(1, 1, "x" * 20)])
    assert isinstance(delta, TextDelta)
    assert delta.text == "x" * 20
    assert isinstance(finished, MessageFinished)


def test_a_tool_is_told_once_in_whatever_way_it_is_seen() -> None:
    seen = Seen()
    asked = call("work", n=1).model_copy(update={"id": "call-1-1"})
    result = ToolResult(call_id="call-1-1", name="work", content=[Text(text="ok")])
    started = CallStatus(call_id="call-1-1", tool="work", arguments={"n": 1}, state="running")
    status = RunStatus(agent="a", status="acting", doing="", calls=[started])
    done = started.model_copy(update={"state": "done", "summary": "ok"})
    note = Progress(call="call-1-1", attempt=1, seq=1, note="half")
    events = [
        *seen.of_messages([Message(role="assistant", parts=[asked], meta=ReplyMeta(step=1, model="m"))]),
        *seen.of_status(status),
        *seen.of_status(status),
        *seen.of_flights([Pending(progress=note, attempt=2, error="busy")]),
        *seen.of_flights([Pending(progress=note, attempt=2, error="busy")]),
        *seen.of_status(status.model_copy(update={"calls": [done]})),
        *seen.of_messages([Message(role="tool", parts=[result])]),
        *seen.of_flights([Pending(progress=note, attempt=3, error="late")]),
    ]
    tools = [e for e in events if isinstance(e, ToolStarted | ToolProgress | ToolFinished | Retrying)]
    assert [e.kind for e in tools] == ["tool_started", "retrying", "tool_progress", "tool_finished"]
    assert seen.calls == {}


def test_steps_are_told_from_the_transcript_alone() -> None:
    asked = [ToolCall(id=f"call-1-{n}", name="work", arguments={"n": n}) for n in (1, 2)]
    first = message(1, 2, "").model_copy(update={"parts": asked})
    results = [
        ToolResult(call_id="call-1-1", name="work", content=[Text(text="no")], is_error=True, attempts=3),
    ]
    steps = steps_of(
        [Message.user("go"), first, Message(role="tool", parts=list(results)), message(2, 1, "done")]
    )
    assert [(s.step, s.text, s.attempts) for s in steps] == [(1, "", 2), (2, "done", 1)]
    assert [(c.finished, c.is_error, c.attempts) for c in steps[0].tool_calls] == [
        (True, True, 3),
        (False, False, 0),
    ]
    assert steps[0].errors == ["work: no"]
