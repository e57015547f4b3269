"""Changes of a run as events: complete, in order, each once, whatever the polls showed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from perdure.messages import Message, ReplyMeta, Text, ToolCall, ToolResult
from perdure.starter.client.steps import steps_of
from perdure.starter.watch.changes import ChangeTracker, PendingActivity
from perdure.wire.effects import Progress
from perdure.wire.events import (
    ChildEvent,
    Event,
    EventsMissing,
    MessageFinished,
    NodeFinished,
    NodeStarted,
    PlanChanged,
    Retrying,
    StatusChanged,
    TextAssembler,
    TextDelta,
    TextRestarted,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TreeEvent,
)
from perdure.wire.results import (
    Approval,
    CallStatus,
    Failure,
    NodeResult,
    NodeState,
    NodeStatus,
    Parked,
    PlanItem,
    RunResult,
    RunStatus,
    TurnReply,
    Waiting,
)

from .runs import call

ANSWER = st.text("abc ", max_size=30)
WINDOW = 8
NOW = datetime(2026, 11, 20, tzinfo=UTC)
Streamed = tuple[list[tuple[int, str]], int, str]
"""Of one step: what was pieces, as (attempt, text so far), then the attempt and text of the message."""


def window(step: int, attempt: int, text: str, seq: int = 1) -> PendingActivity:
    offset = max(len(text) - WINDOW, 0)
    progress = Progress(call=f"step-{step}", attempt=attempt, seq=seq, offset=offset, text=text[offset:])
    return PendingActivity(progress=progress, attempt=attempt, error=None)


def message(step: int, attempts: int, text: str) -> Message:
    meta = ReplyMeta(step=step, model="m", attempts=attempts)
    return Message(role="assistant", parts=[Text(text=text)] if text else [], meta=meta)


def assert_in_order(events: list[Event]) -> None:
    """Within one step, pieces follow each other without gap or overlap, until it begins anew."""
    texts: dict[int, str] = {}
    for event in events:
        match event:
            case TextDelta():
                assert event.offset == len(texts.get(event.step, ""))
                texts[event.step] = texts.get(event.step, "") + event.text
            case TextRestarted():
                texts[event.step] = ""
            case MessageFinished():
                assert texts.get(event.step, "") == event.text
            case _:
                pass


@st.composite
def streamed_steps(draw: st.DrawFn) -> list[Streamed]:
    """Attempts are counted anew when another model takes over, so their numbers may fall or repeat."""
    steps: list[Streamed] = []
    for _ in range(draw(st.integers(1, 3))):
        pieces: list[tuple[int, str]] = []
        attempt, answer = 1, ""
        for _ in range(draw(st.integers(1, 3))):
            attempt, answer = draw(st.integers(1, 3)), draw(ANSWER)
            ends = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=4)))
            pieces += [(attempt, answer[:end]) for end in ends]
        steps.append((pieces, attempt, answer))
    return steps


@given(streamed_steps(), st.booleans())
def test_pieces_add_up_to_the_message(run: list[Streamed], late: bool) -> None:
    """Whatever parts of whatever attempts were seen, in whatever order they became stale."""
    tracker, events, reader = ChangeTracker(), list[Event](), TextAssembler()
    for step, (pieces, attempt, answer) in enumerate(run, 1):
        for seq, (number, text) in enumerate(pieces, 1):
            events += tracker.track_pending([window(step, number, text, seq)])
        events += tracker.track_messages([message(step, attempt, answer)])
        if late and pieces:  # the server's description may be older than the transcript
            assert list(tracker.track_pending([window(step, *pieces[-1])])) == []
    assert_in_order(events)
    for event in events:
        reader.feed(event)
    for step, (_, _, answer) in enumerate(run, 1):
        assert reader.text(step) == answer


@given(streamed_steps())
def test_last_answer_is_complete_without_a_worker(run: list[Streamed]) -> None:
    """The server knows the result, so its missing text is reported from there, once."""
    tracker, events, reader = ChangeTracker(), list[Event](), TextAssembler()
    for step, (pieces, attempt, answer) in enumerate(run, 1):
        for number, text in pieces:
            events += tracker.track_pending([window(step, number, text)])
        if step < len(run):
            events += tracker.track_messages([message(step, attempt, answer)])
    last = run[-1][2]
    result = RunResult(agent="a", output=last, stop_reason="end_turn", steps=len(run))
    assert list(tracker.track_end(result)) == [], "a worker has answered about everything"
    events += tracker.track_end(result, behind=True)
    assert_in_order(events)
    for event in events:
        reader.feed(event)
    assert reader.text(len(run)) == last
    assert list(tracker.track_end(result, behind=True)) == [], "once"


@pytest.mark.parametrize(("seen", "marked"), [(0, True), (1, True), (2, False), (3, False)])
def test_turn_without_worker_ends_whole_or_says_so(seen: int, marked: bool) -> None:
    """The reply fills what is missing of the last answer; what else is missing is said. A whole turn gets nothing."""
    tracker, reader = ChangeTracker(), TextAssembler()
    asked = message(1, 1, "let me look")
    events = [*tracker.track_messages([Message.user("go"), asked, message(2, 1, "the whole answer")][:seen])]
    if seen < 3:
        events += tracker.track_pending([window(2, 1, "the who")])
    reply = TurnReply(output="the whole answer", text="the whole answer", stop_reason="end_turn", messages=3)
    events += tracker.track_turn_end(reply)
    assert any(isinstance(event, EventsMissing) for event in events) == marked
    for event in events:
        reader.feed(event)
    assert reader.text(2) == "the whole answer"
    ends = [event for event in events if isinstance(event, MessageFinished) and event.step == 2]
    assert [(end.index, end.text) for end in ends] == [(2, "the whole answer")]
    assert list(tracker.track_turn_end(reply)) == [], "once"


def test_finished_run_without_worker_says_so() -> None:
    """A run that ended while no worker answers is marked; one about which all is known is not."""
    result = RunResult(agent="a", output="done", stop_reason="end_turn", steps=3)
    events = list(ChangeTracker().track_end(result, behind=True))
    assert [event.kind for event in events] == ["text", "events_missing"]
    known = ChangeTracker()
    list(known.track_messages([message(3, 1, "done")]))
    assert list(known.track_end(result, behind=True)) == []


def test_another_models_answer_restarts_the_text() -> None:
    """The attempt has the same number, but its text does not continue what was reported."""
    tracker = ChangeTracker()
    events = [
        *tracker.track_pending([window(1, 1, "Hello")]),
        *tracker.track_pending([window(1, 1, "Good day")]),
    ]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]
    assert_in_order(events)


def test_a_smaller_attempt_number_restarts_the_text() -> None:
    """Attempts are counted anew after a resume or with another model."""
    tracker = ChangeTracker()
    events = [*tracker.track_pending([window(1, 6, "Hel")]), *tracker.track_pending([window(1, 1, "Good")])]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]


def test_text_after_a_gap_waits_for_message() -> None:
    tracker = ChangeTracker()
    assert list(tracker.track_pending([window(1, 1, "x" * 20)])) == []
    [delta, finished] = tracker.track_messages([message(1, 1, "x" * 20)])
    assert isinstance(delta, TextDelta)
    assert delta.text == "x" * 20
    assert isinstance(finished, MessageFinished)


def test_each_tool_event_comes_once() -> None:
    """The transcript, the status and pending activities all show the same call."""
    tracker = ChangeTracker()
    work = call("work", n=1).model_copy(update={"id": "call-1-1"})
    result = ToolResult(call_id="call-1-1", name="work", content=[Text(text="ok")])
    started = CallStatus(call_id="call-1-1", tool="work", arguments={"n": 1}, state="running")
    status = RunStatus(agent="a", status="acting", doing="", calls=[started])
    done = started.model_copy(update={"state": "done", "summary": "ok"})
    note = Progress(call="call-1-1", attempt=1, seq=1, note="half")
    events = [
        *tracker.track_messages([Message(role="assistant", parts=[work], meta=ReplyMeta(step=1, model="m"))]),
        *tracker.track_status(status),
        *tracker.track_status(status),
        *tracker.track_pending([PendingActivity(progress=note, attempt=2, error="busy")]),
        *tracker.track_pending([PendingActivity(progress=note, attempt=2, error="busy")]),
        *tracker.track_status(status.model_copy(update={"calls": [done]})),
        *tracker.track_messages([Message(role="tool", parts=[result])]),
        *tracker.track_pending([PendingActivity(progress=note, attempt=3, error="late")]),
    ]
    tools = [e for e in events if isinstance(e, ToolStarted | ToolProgress | ToolFinished | Retrying)]
    assert [e.kind for e in tools] == ["tool_started", "retrying", "tool_progress", "tool_finished"]
    assert tracker.calls == {}


def test_steps_come_from_the_transcript() -> None:
    calls = [ToolCall(id=f"call-1-{n}", name="work", arguments={"n": n}) for n in (1, 2)]
    first = message(1, 2, "").model_copy(update={"parts": calls})
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


STATES: tuple[NodeState, ...] = ("running", "done", "failed", "skipped", "cancelled")


@st.composite
def polled_nodes(draw: st.DrawFn) -> list[list[NodeStatus]]:
    """Polls of a team: nodes appear, end, and are forgotten once they have ended."""
    polls: list[list[NodeStatus]] = []
    nodes: list[NodeStatus] = []
    for tick in range(draw(st.integers(0, 5))):
        at = NOW + timedelta(seconds=tick)
        for _ in range(draw(st.integers(0, 2))):
            key = f"n-{len(nodes)}"
            nodes.append(NodeStatus(key=key, node="n", run_id=f"r/~{key}", started_at=at))
        for place, node in enumerate(nodes):
            state = draw(st.sampled_from(STATES))
            if node.state == "running" and state != "running":
                nodes[place] = node.model_copy(update={"state": state, "ended_at": at})
        if draw(st.booleans()):
            polls.append([node for node in nodes if node.state == "running" or draw(st.booleans())])
    return polls


@given(polled_nodes(), st.booleans())
def test_child_runs_start_and_end_once(polls: list[list[NodeStatus]], has_result: bool) -> None:
    """Also if a poll never showed them, and if the result does not list them."""
    tracker = ChangeTracker()
    events = [event for poll in polls for event in tracker.track_nodes(poll)]
    known = {node.key: node for poll in polls for node in poll}
    ended = [NodeResult(**node.model_dump()) for node in known.values() if node.state != "running"]
    result = RunResult(agent="a", stop_reason="end_turn", nodes=ended) if has_result else None
    events += tracker.track_end(result)
    reported = [(event.key, event.kind) for event in events if isinstance(event, NodeStarted | NodeFinished)]
    assert len(reported) == len(set(reported)) == 2 * len(known)
    for key, node in known.items():
        assert reported.index((key, "node_started")) < reported.index((key, "node_finished"))
        ends = [event.state for event in events if isinstance(event, NodeFinished) and event.key == key]
        assert ends == [node.state if node.state != "running" else "cancelled"]


def test_handoff_ends_before_the_next_starts() -> None:
    at = [NOW + timedelta(seconds=n) for n in range(3)]
    first = NodeStatus(key="a-1", node="a", state="done", started_at=at[0], ended_at=at[1])
    second = NodeStatus(key="b-1", node="b", state="done", started_at=at[1], ended_at=at[2])
    events = list(ChangeTracker().track_nodes([first, second]))
    assert [event.kind for event in events] == ["node_started", "node_finished"] * 2


def test_called_agents_run_is_inside_its_call() -> None:
    tracker, node = (
        ChangeTracker(),
        NodeStatus(key="helper-1-1", node="helper", run_id="r/~helper-1-1", state="done"),
    )
    helper_call = call("helper", input="x").model_copy(update={"id": "call-1-1"})
    result = ToolResult(call_id="call-1-1", name="helper", content=[Text(text="ok")])
    tracker.set_call_runs([node])
    messages = [
        Message(role="assistant", parts=[helper_call], meta=ReplyMeta(step=1, model="m")),
        Message(role="tool", parts=[result]),
    ]
    status = RunStatus(agent="a", status="thinking", doing="")
    events = [*tracker.track_messages(messages), *tracker.track_status(status, [node])]
    assert [event.kind for event in events if event.kind not in ("message", "status")] == [
        "tool_started",
        "node_started",
        "node_finished",
        "tool_finished",
    ]


def test_waiting_is_reported_by_run_and_call() -> None:
    """A call id may repeat below, and waits in each run. A run that parks again is reported again.

    So is a call that waits again with another digest, for its stand-in.
    """

    def approval(key: str, digest: str = "d") -> Approval:
        run_id = f"r/~{key}"
        return Approval(
            call_id="call-1-1", tool="t", arguments={}, digest=digest, since=NOW, run_id=run_id, path=[key]
        )

    def new_events(*waiting: Waiting) -> list[str]:
        status = RunStatus(agent="a", status="parked", doing="", waiting=list(waiting))
        return [event.kind for event in tracker.track_status(status) if event.kind != "status"]

    tracker, parked = (
        ChangeTracker(),
        Parked(failure=Failure(kind="payment", message="no"), run_id="r/~c-1", path=["c-1"]),
    )
    assert new_events(approval("a-1"), approval("b-1"), parked) == [
        *["approval_requested"] * 2,
        "parked_below",
    ]
    assert new_events(approval("a-1"), approval("b-1"), parked) == []
    assert new_events(approval("b-1")) == []
    assert new_events(approval("b-1"), parked) == ["parked_below"]
    assert new_events(approval("b-1", "e"), parked) == ["approval_requested"]


def test_status_carries_the_failure_below() -> None:
    failure = Failure(kind="payment", message="no")
    parked = Parked(failure=failure, run_id="r/~c-1", path=["c-1"])
    events = list(
        ChangeTracker().track_status(RunStatus(agent="a", status="parked", doing="", waiting=[parked]))
    )
    assert [event.failure for event in events if isinstance(event, StatusChanged)] == [failure]


def test_plan_is_reported_when_it_changes() -> None:
    tracker, one = ChangeTracker(), [PlanItem(text="one")]
    status = RunStatus(agent="a", status="thinking", doing="", plan=one)
    polls = [status, status, status.model_copy(update={"plan": []})]
    events = [event for poll in polls for event in tracker.track_status(poll)]
    assert [event.items for event in events if isinstance(event, PlanChanged)] == [one, []]


def test_a_node_named_step_is_no_model_call() -> None:
    progress = Progress(call="step-one-1", attempt=1, seq=1)
    assert (
        list(ChangeTracker().track_pending([PendingActivity(progress=progress, attempt=1, error=None)])) == []
    )


def test_assembler_separates_runs_of_a_tree() -> None:
    reader = TextAssembler()
    for run_id, text in (("r/~a-1", "one"), ("r/~b-1", "two")):
        piece = TextDelta(step=1, attempt=1, seq=1, offset=0, text=text)
        reader.feed(ChildEvent(run_id=run_id, path=[run_id[2:]], event=piece))
    reader.feed(MessageFinished(index=1, step=1, text="root"))
    assert [reader.text(1, run_id) for run_id in ("r/~a-1", "r/~b-1", "")] == ["one", "two", "root"]


def test_tree_events_survive_json() -> None:
    event = ChildEvent(
        run_id="r/~a-1", path=["a-1"], event=NodeStarted(key="b-1", node="b", run_id="r/~a-1/~b-1")
    )
    adapter = TypeAdapter[TreeEvent](TreeEvent)
    assert adapter.validate_json(event.model_dump_json()) == event
