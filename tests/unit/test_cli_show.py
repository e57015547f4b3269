"""How values and events look."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from perdure.messages import Message, Text, ToolCall, ToolResult, Usage
from perdure.starter import display
from perdure.starter.cli import tables
from perdure.starter.cli.screen import Lines, TextFlow, event_line
from perdure.wire.events import Event, Finished, Retrying, StatusChanged, TextDelta, ToolStarted
from perdure.wire.results import Approval, Failure, Question, RunResult, RunStatus

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def test_no_escape_sequence_reaches_the_terminal() -> None:
    hostile = "a\x1b[2Jb\x07\x9bc\rd\ne\tf"
    assert display.clean(hostile) == "a[2Jbcd\ne\tf"
    assert "\x1b" not in display.format_call("t\x1b", {"x": hostile})
    started = event_line(ToolStarted(call_id="c", tool="t", arguments={"x": "[red]\x1b[0m"}))
    assert started is not None
    assert "\x1b" not in started
    assert "\\[red]" in started


def test_amounts_say_what_is_unknown() -> None:
    """Amounts are shown with what is unknown."""
    assert display.cost(None) == "cost unknown"
    assert display.cost(12_345) == "$0.0123"
    assert (display.plural(1, "step"), display.plural(1234, "token")) == ("1 step", "1,234 tokens")
    assert (display.duration(999), display.duration(1500)) == ("999 ms", "1.5 s")


def test_times_are_told_roughly() -> None:
    told = [display.age(NOW - timedelta(seconds=s), NOW) for s in (-5, 5, 119, 600, 10_000, 400_000)]
    assert told == ["0 s ago", "5 s ago", "119 s ago", "10 min ago", "2 h ago", "4 d ago"]


def test_an_approval_is_shown_whole() -> None:
    text = "x" * 500
    want = Approval(call_id="call-1-1", tool="refund", arguments={"why": text}, digest="d", since=NOW)
    assert tables.waiting_item(want) == f'refund(why="{text}")'
    assert tables.answer_hint("r", want).startswith("perdure approve r call-1-1")
    asked = Question(call_id="call-1-1", text="Which?", since=NOW)
    assert tables.answer_hint("r", asked) == 'perdure send r "..." --call call-1-1'


def test_parked_run_has_reason_and_advice() -> None:
    """A parked run has its reason and the way to resume it."""
    why = Failure(kind="authentication", message="no key\nat all", model="m:x", step=2)
    status = RunStatus(agent="a", status="parked", doing="parked", failure=why)
    rows = tables.status_rows("r", status)
    assert ("why", "authentication at step 2 (m:x): no key at all") in rows
    assert any("perdure resume r" in value for _, value in rows)


def test_retrying_parked_run_needs_nobody() -> None:
    """A parked run with a retry timer asks nobody to repair anything."""
    at = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
    said = tables.resume_hint("r-1", Failure(kind="overloaded", message="away", resumes_at=at))
    assert "by itself at 12:30:00 UTC; sooner with" in said
    assert "mend" not in said


def test_every_message_part_is_shown() -> None:
    call = ToolCall(id="call-1-1", name="search", arguments={"q": "é"})
    result = ToolResult(call_id="call-1-1", name="search", content=[Text(text="found")], is_error=True)
    said = tables.message_parts(Message(role="assistant", parts=[Text(text="hm"), call]))
    assert said == [("assistant", "hm"), ("assistant · calls call-1-1", 'search(q="é")')]
    assert tables.message_parts(Message(role="tool", parts=[result])) == [
        ("search · error of call-1-1", "found")
    ]


def flowed(width: int, *pieces: str) -> str:
    file = io.StringIO()
    flow = TextFlow(Console(file=file, width=width))
    for piece in pieces:
        flow.write(piece)
    flow.end_line()
    return file.getvalue()


def test_stream_breaks_between_words() -> None:
    """Streamed text breaks between words, however it is cut."""
    whole = "one two three four"
    expected = "one two \nthree four\n"
    assert flowed(10, whole) == expected
    assert flowed(10, *whole) == expected


def test_stream_keeps_lines_and_long_words() -> None:
    """Streamed text keeps its own lines and its long words."""
    assert flowed(10, "a\n\n", "b\n") == "a\n\nb\n"
    long = "x" * 100
    assert flowed(10, long) == long + "\n"
    assert flowed(10) == ""


def test_end_is_line_with_cost() -> None:
    """The end of a run is a line with its cost."""
    result = RunResult(agent="a", stop_reason="max_steps", steps=1, usage=Usage(input_tokens=10))
    end = event_line(Finished(status="completed", result=result))
    assert end is not None
    assert "max_steps · 1 step · 0 tool calls · 10 tokens · cost unknown" in end
    failed = event_line(Finished(status="failed", error=Failure(kind="bug", message="no")))
    assert failed is not None
    assert "bug: no" in failed


@pytest.mark.parametrize(
    ("event", "out", "err"),
    [
        (TextDelta(step=1, attempt=1, seq=0, offset=0, text="hello"), "", ""),
        (
            Finished(
                status="completed", result=RunResult(agent="a", output={"x": 1}, stop_reason="end_turn")
            ),
            '{\n  "x": 1\n}\n',
            "✓ end_turn · 0 steps · 0 tool calls · 0 tokens · cost unknown\n",
        ),
        (Retrying(call="step-1", attempt=2, error="[x]"), "", "↻ step-1 is tried again (attempt 2): [x]\n"),
        (StatusChanged(status="paused", doing="paused"), "", "! paused\n"),
    ],
)
def test_piped_stdout_is_output_alone(
    event: Event, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Lines("r").show(event)
    assert capsys.readouterr() == (out, err)
