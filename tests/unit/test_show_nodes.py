"""How trees look: runs below, plans, and who waits where."""

import io
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from rich.console import Console

from perdure.starter.cli import tables
from perdure.starter.cli.active_runs import ActiveRuns
from perdure.starter.cli.inspect import inspection_parts
from perdure.starter.cli.screen import Lines, Terminal
from perdure.starter.client.inspect import Inspection
from perdure.starter.watch.changes import nodes_in_result
from perdure.wire.events import (
    ChildEvent,
    Event,
    Finished,
    MessageFinished,
    NodeFinished,
    NodeStarted,
    ParkedBelow,
    PlanChanged,
    StatusChanged,
    TextDelta,
    ToolStarted,
    TreeEvent,
)
from perdure.wire.results import (
    Approval,
    Failure,
    NodeResult,
    NodeStatus,
    Parked,
    PlanItem,
    Question,
    RunResult,
    RunStatus,
    Waiting,
)

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def held(*path: str, call_id: str = "call-1-1") -> Approval:
    run_id = "/~".join(["r", *path])
    return Approval(
        call_id=call_id,
        tool="pay",
        arguments={"sum": 1},
        digest="d",
        since=NOW,
        run_id=run_id,
        path=list(path),
    )


def started(key: str) -> NodeStarted:
    return NodeStarted(key=key, node=key, run_id=f"r/~{key}")


def finished(key: str, **changed: Any) -> NodeFinished:
    given: dict[str, Any] = {
        "state": "done",
        "stop_reason": "end_turn",
        "steps": 2,
        "cost_microusd": 1000,
        **changed,
    }
    return NodeFinished(key=key, node=key, run_id=f"r/~{key}", **given)


def child(key: str, event: Event) -> ChildEvent:
    return ChildEvent(run_id="r/~" + key.replace("/", "/~"), path=key.split("/"), event=event)


def piece(text: str, offset: int = 0) -> TextDelta:
    return TextDelta(step=1, attempt=1, seq=1, offset=offset, text=text)


def said(text: str) -> MessageFinished:
    return MessageFinished(index=1, step=1, text=text)


def printed(*things: Any) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    for thing in things:
        console.print(thing)
    return cast("io.StringIO", console.file).getvalue()


# -- perdure show


def test_run_shows_nodes_plan_and_waiting() -> None:
    nodes = [
        NodeStatus(key="draft-1", node="draft", state="done", stop_reason="end_turn", steps=3, run_id="r/x"),
        NodeStatus(key="law-1", node="law", run_id="r/~law-1"),
        NodeStatus(key="out-1", node="out", kind="function", state="failed"),
    ]
    status = RunStatus(
        agent="review",
        kind="graph",
        status="waiting_approval",
        doing="",
        spec_hash="5" * 64,
        nodes=nodes,
        waiting=[held("law-1")],
        plan=[PlanItem(text="read\x1b it", state="done"), PlanItem(text="judge")],
        shared_context={"finder": {"x": 1}},
    )
    result = RunResult(agent="review", stop_reason="unmet_join", unmet={"late": "its join was never met"})
    inspection = Inspection(id="r", state="running", status=status, nodes=tuple(nodes), result=result)
    shown = [" ".join(line.split()) for line in printed(*inspection_parts(inspection)).splitlines()]
    assert "agent review (graph, spec 555555555555)" in shown
    assert "waits for law-1: pay(sum=1)" in shown
    assert "perdure approve r/~law-1 call-1-1 (or: perdure deny r/~law-1 call-1-1)" in shown
    assert "plan ☑ read it" in shown
    assert 'shared {"finder": {"x": 1}}' in shown
    assert "never ran late: its join was never met" in shown
    assert "draft-1 done end_turn 3 $0.0000 r/x" in shown
    assert "law-1 running r/~law-1" in shown
    assert "out-1 failed (a function)" in shown
    assert [node["key"] for node in inspection.plain()["nodes"]] == ["draft-1", "law-1", "out-1"]


@pytest.mark.parametrize(
    ("want", "command"),
    [
        (held(), "perdure approve r call-1-1"),
        (held("a-1", "b-1"), "perdure approve r/~a-1/~b-1 call-1-1"),
        (
            Question(call_id="call-1-1", text="?", since=NOW, run_id="r/~a-1", path=["a-1"]),
            'perdure send r/~a-1 "..." --call call-1-1',
        ),
        (
            Parked(failure=Failure(kind="bug", message=""), run_id="r/~a-1", path=["a-1"]),
            "perdure resume r/~a-1",
        ),
    ],
)
def test_command_names_waiting_run(want: Waiting, command: str) -> None:
    assert command in tables.answer_hint("r", want)


# -- perdure run, perdure watch


def test_tree_lines_begin_with_speaker(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("r")
    events: list[TreeEvent] = [
        started("writer-1"),
        child("writer-1", StatusChanged(status="thinking", doing="thinking")),
        child("writer-1", piece("It is")),
        child("writer-1", said("It is [b]done[/b].")),
        child("writer-1", ToolStarted(call_id="call-1-1", tool="look", arguments={})),
        child("writer-1", PlanChanged(items=[PlanItem(text="one"), PlanItem(text="two")])),
        child("writer-1/helper-1-1", said("yes")),
        child("writer-1", Finished(status="completed", result=RunResult(agent="w", stop_reason="end_turn"))),
        finished("writer-1"),
        finished("other-1", state="failed", stop_reason="error", steps=0),
        ParkedBelow(parked=Parked(failure=Failure(kind="payment", message="no"), path=["a-1"])),
    ]
    for event in events:
        lines.show(event)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "▸ writer-1",
        "writer-1 | step 1: It is [b]done[/b].",
        "writer-1 | → look()",
        "writer-1 |   ☐ one",
        "writer-1 |   ☐ two",
        "writer-1/helper-1-1 | step 1: yes",
        "✓ writer-1: done · 2 steps · $0.0010",
        "✗ other-1: error",
        "! a-1: parked: payment: no",
    ]


def test_only_worker_text_is_live() -> None:
    """The text of the only working agent is shown as it comes."""
    active_runs = ActiveRuns()
    active_runs.feed(started("a-1"))
    one = child("a-1", piece("It "))
    assert active_runs.take_piece(one, piece("It "))
    active_runs.feed(started("b-1"))
    assert not active_runs.take_piece(one, piece("is", offset=3)), "two work"
    active_runs.feed(finished("b-1"))
    assert not active_runs.take_piece(one, piece("done", offset=5)), "a piece is missing"
    assert not active_runs.was_streamed(one, said("It isdone"))
    assert active_runs.take_piece(one, piece("is", offset=3))
    assert active_runs.was_streamed(one, said("It is"))


def test_waiting_parent_is_not_working() -> None:
    active_runs = ActiveRuns()
    active_runs.feed(started("a-1"))
    active_runs.feed(child("a-1", NodeStarted(key="b-1", node="b", run_id="r/~a-1/~b-1")))
    active_runs.set_doing("r/~a-1/~b-1", "thinking")
    assert active_runs.lines() == ["a-1/b-1: thinking"]
    assert active_runs.take_piece(child("a-1/b-1", piece("x")), piece("x"))
    active_runs.feed(child("a-1", NodeFinished(key="b-1", node="b", run_id="r/~a-1/~b-1", state="done")))
    assert active_runs.lines() == ["a-1: starting"]


def test_few_of_many_workers_are_shown() -> None:
    active_runs = ActiveRuns()
    for number in range(1, 10):
        active_runs.feed(started(f"a-{number}"))
    assert active_runs.lines()[-2:] == ["a-6: starting", "and 3 more"]


def test_terminal_shows_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    events: list[TreeEvent] = [
        started("a-1"),
        child("a-1", piece("one ")),
        child("a-1", piece("two", offset=4)),
        child("a-1", said("one two")),
        started("b-1"),
        child("b-1", piece("lost")),
        child("b-1", said("lost and found")),
        finished("a-1"),
        finished("b-1"),
        piece("The end."),
        MessageFinished(index=1, step=1, text="The end."),
        Finished(status="completed", result=RunResult(agent="r", output="The end.", stop_reason="end_turn")),
    ]
    for event in events:
        terminal.show(event)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "▸ a-1",
        "a-1 | one two",
        "▸ b-1",
        "b-1 | step 1: lost and found",
        "✓ a-1: done · 2 steps · $0.0010",
        "✓ b-1: done · 2 steps · $0.0010",
        "The end.",
        "✓ end_turn · 0 steps · 0 tool calls · 0 tokens · cost unknown",
    ]


def test_live_answer_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A swarm's answer that was shown as it came is not repeated."""
    terminal = Terminal()
    result = RunResult(agent="r", output="It is so.", stop_reason="end_turn")
    for event in (
        started("a-1"),
        child("a-1", piece("It is so.")),
        child("a-1", said("It is so.")),
        finished("a-1"),
        Finished(status="completed", result=result),
    ):
        terminal.show(event)
    assert capsys.readouterr().out.count("It is so.") == 1


def test_node_results_omit_outputs() -> None:
    result = RunResult(
        agent="r", stop_reason="end_turn", nodes=[NodeResult(key="a-1", node="a", output="x" * 999)]
    )
    assert nodes_in_result(result) == [NodeStatus(key="a-1", node="a")]
