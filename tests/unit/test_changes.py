"""Watching: whatever is seen in whatever bits, what is told adds up to what was said."""

from datetime import UTC, datetime, timedelta

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
    Waiting,
)

from .runs import call

ANSWER = st.text("abc ", max_size=30)
WINDOW = 8
NOW = datetime(2026, 11, 20, tzinfo=UTC)
Heard = tuple[list[tuple[int, str]], int, str]
"""Of one step: what was heard, as (attempt, text so far), then the attempt and text of the message."""


def window(step: int, attempt: int, said: str, seq: int = 1) -> PendingActivity:
    offset = max(len(said) - WINDOW, 0)
    progress = Progress(call=f"step-{step}", attempt=attempt, seq=seq, offset=offset, text=said[offset:])
    return PendingActivity(progress=progress, attempt=attempt, error=None)


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
def test_events_add_up_to_text(run: list[Heard], late: bool) -> None:
    """The events add up to the text of the transcript."""
    seen, events, reader = ChangeTracker(), list[Event](), TextAssembler()
    for step, (heard, attempt, answer) in enumerate(run, 1):
        for seq, (of_attempt, said) in enumerate(heard, 1):
            events += seen.track_pending([window(step, of_attempt, said, seq)])
        events += seen.track_messages([message(step, attempt, answer)])
        if late and heard:  # the server's description may be older than the transcript
            assert list(seen.track_pending([window(step, *heard[-1])])) == []
    assert_told_in_order(events)
    for event in events:
        reader.feed(event)
    for step, (_, _, answer) in enumerate(run, 1):
        assert reader.text(step) == answer


@given(watched())
def test_last_answer_is_complete_without_worker(run: list[Heard]) -> None:
    """The last answer is complete, though no worker reported it."""
    seen, events, reader = ChangeTracker(), list[Event](), TextAssembler()
    for step, (heard, attempt, answer) in enumerate(run, 1):
        for of_attempt, said in heard:
            events += seen.track_pending([window(step, of_attempt, said)])
        if step < len(run):
            events += seen.track_messages([message(step, attempt, answer)])
    last = run[-1][2]
    result = RunResult(agent="a", output=last, stop_reason="end_turn", steps=len(run))
    assert list(seen.track_end(result)) == [], "a worker has told all there was to tell"
    events += seen.track_end(result, behind=True)
    assert_told_in_order(events)
    for event in events:
        reader.feed(event)
    assert reader.text(len(run)) == last
    assert list(seen.track_end(result, behind=True)) == [], "once"


def test_fallback_answer_starts_anew() -> None:
    """The answer of another model is not appended to the first model's."""
    seen = ChangeTracker()
    events = [*seen.track_pending([window(1, 1, "Hello")]), *seen.track_pending([window(1, 1, "Good day")])]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]
    assert_told_in_order(events)


def test_restarted_answer_is_reported_at_once() -> None:
    """An answer that begins anew with a lower attempt number is reported at once."""
    seen = ChangeTracker()
    events = [*seen.track_pending([window(1, 6, "Hel")]), *seen.track_pending([window(1, 1, "Good")])]
    assert [event.kind for event in events] == ["text", "text_restarted", "text"]


def test_gap_waits_for_message() -> None:
    """A gap in a text is held back until the message is there."""
    seen = ChangeTracker()
    assert list(seen.track_pending([window(1, 1, "x" * 20)])) == []
    [delta, finished] = seen.track_messages([message(1, 1, "x" * 20)])
    assert isinstance(delta, TextDelta)
    assert delta.text == "x" * 20
    assert isinstance(finished, MessageFinished)


def test_tool_is_reported_once() -> None:
    """A tool call is reported once, in whichever way it is seen."""
    seen = ChangeTracker()
    asked = call("work", n=1).model_copy(update={"id": "call-1-1"})
    result = ToolResult(call_id="call-1-1", name="work", content=[Text(text="ok")])
    started = CallStatus(call_id="call-1-1", tool="work", arguments={"n": 1}, state="running")
    status = RunStatus(agent="a", status="acting", doing="", calls=[started])
    done = started.model_copy(update={"state": "done", "summary": "ok"})
    note = Progress(call="call-1-1", attempt=1, seq=1, note="half")
    events = [
        *seen.track_messages([Message(role="assistant", parts=[asked], meta=ReplyMeta(step=1, model="m"))]),
        *seen.track_status(status),
        *seen.track_status(status),
        *seen.track_pending([PendingActivity(progress=note, attempt=2, error="busy")]),
        *seen.track_pending([PendingActivity(progress=note, attempt=2, error="busy")]),
        *seen.track_status(status.model_copy(update={"calls": [done]})),
        *seen.track_messages([Message(role="tool", parts=[result])]),
        *seen.track_pending([PendingActivity(progress=note, attempt=3, error="late")]),
    ]
    tools = [e for e in events if isinstance(e, ToolStarted | ToolProgress | ToolFinished | Retrying)]
    assert [e.kind for e in tools] == ["tool_started", "retrying", "tool_progress", "tool_finished"]
    assert seen.calls == {}


def test_steps_come_from_transcript() -> None:
    """Steps are reported from the transcript alone."""
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


STATES: tuple[NodeState, ...] = ("running", "done", "failed", "skipped", "cancelled")


@st.composite
def growing(draw: st.DrawFn) -> list[list[NodeStatus]]:
    """Looks at a team: nodes appear, end, and are forgotten once they have ended."""
    looks: list[list[NodeStatus]] = []
    nodes: list[NodeStatus] = []
    for tick in range(draw(st.integers(0, 5))):
        at = NOW + timedelta(seconds=tick)
        for _ in range(draw(st.integers(0, 2))):
            key = f"n-{len(nodes)}"
            nodes.append(NodeStatus(key=key, node="n", run_id=f"r/{key}", started_at=at))
        for place, node in enumerate(nodes):
            state = draw(st.sampled_from(STATES))
            if node.state == "running" and state != "running":
                nodes[place] = node.model_copy(update={"state": state, "ended_at": at})
        if draw(st.booleans()):
            looks.append([node for node in nodes if node.state == "running" or draw(st.booleans())])
    return looks


@given(growing(), st.booleans())
def test_child_begins_and_ends_once(looks: list[list[NodeStatus]], tells_result: bool) -> None:
    """Every run below is reported to begin once and to end once."""
    seen = ChangeTracker()
    events = [event for look in looks for event in seen.track_nodes(look)]
    known = {node.key: node for look in looks for node in look}
    given = [NodeResult(**node.model_dump()) for node in known.values() if node.state != "running"]
    result = RunResult(agent="a", stop_reason="end_turn", nodes=given) if tells_result else None
    events += seen.track_end(result)
    told = [(event.key, event.kind) for event in events if isinstance(event, NodeStarted | NodeFinished)]
    assert len(told) == len(set(told)) == 2 * len(known)
    for key, node in known.items():
        assert told.index((key, "node_started")) < told.index((key, "node_finished"))
        ends = [event.state for event in events if isinstance(event, NodeFinished) and event.key == key]
        assert ends == [node.state if node.state != "running" else "cancelled"]


def test_handoff_ends_before_next_begins() -> None:
    """A run that handed over is reported to end before the next begins."""
    at = [NOW + timedelta(seconds=n) for n in range(3)]
    first = NodeStatus(key="a-1", node="a", state="done", started_at=at[0], ended_at=at[1])
    second = NodeStatus(key="b-1", node="b", state="done", started_at=at[1], ended_at=at[2])
    events = list(ChangeTracker().track_nodes([first, second]))
    assert [event.kind for event in events] == ["node_started", "node_finished"] * 2


def test_called_agent_is_within_call() -> None:
    """The run of a called agent is reported within its call."""
    seen, node = (
        ChangeTracker(),
        NodeStatus(key="helper-1-1", node="helper", run_id="r/helper-1-1", state="done"),
    )
    asked = call("helper", input="x").model_copy(update={"id": "call-1-1"})
    result = ToolResult(call_id="call-1-1", name="helper", content=[Text(text="ok")])
    seen.set_call_runs([node])
    messages = [
        Message(role="assistant", parts=[asked], meta=ReplyMeta(step=1, model="m")),
        Message(role="tool", parts=[result]),
    ]
    status = RunStatus(agent="a", status="thinking", doing="")
    events = [*seen.track_messages(messages), *seen.track_status(status, [node])]
    assert [event.kind for event in events if event.kind not in ("message", "status")] == [
        "tool_started",
        "node_started",
        "node_finished",
        "tool_finished",
    ]


def test_equal_call_ids_wait_apart() -> None:
    """Equal call ids of several runs wait apart; parking again is reported again."""

    def held(key: str) -> Approval:
        run_id = f"r/{key}"
        return Approval(
            call_id="call-1-1", tool="t", arguments={}, digest="d", since=NOW, run_id=run_id, path=[key]
        )

    def told(*waiting: Waiting) -> list[str]:
        status = RunStatus(agent="a", status="parked", doing="", waiting=list(waiting))
        return [event.kind for event in seen.track_status(status) if event.kind != "status"]

    seen, parked = (
        ChangeTracker(),
        Parked(failure=Failure(kind="payment", message="no"), run_id="r/c-1", path=["c-1"]),
    )
    assert told(held("a-1"), held("b-1"), parked) == [*["approval_requested"] * 2, "parked_below"]
    assert told(held("a-1"), held("b-1"), parked) == []
    assert told(held("b-1")) == []
    assert told(held("b-1"), parked) == ["parked_below"]


def test_a_run_parked_below_says_why() -> None:
    failure = Failure(kind="payment", message="no")
    parked = Parked(failure=failure, run_id="r/c-1", path=["c-1"])
    events = list(
        ChangeTracker().track_status(RunStatus(agent="a", status="parked", doing="", waiting=[parked]))
    )
    assert [event.failure for event in events if isinstance(event, StatusChanged)] == [failure]


def test_changed_plan_is_reported() -> None:
    """A plan is reported when it has changed."""
    seen, one = ChangeTracker(), [PlanItem(text="one")]
    status = RunStatus(agent="a", status="thinking", doing="", plan=one)
    looks = [status, status, status.model_copy(update={"plan": []})]
    events = [event for look in looks for event in seen.track_status(look)]
    assert [event.items for event in events if isinstance(event, PlanChanged)] == [one, []]


def test_node_name_is_no_step() -> None:
    """The function of a node whose name looks like a step is no model call."""
    progress = Progress(call="step-one-1", attempt=1, seq=1)
    assert (
        list(ChangeTracker().track_pending([PendingActivity(progress=progress, attempt=1, error=None)])) == []
    )


def test_reader_separates_texts_of_tree() -> None:
    """A reader keeps the texts of a tree's runs apart."""
    reader = TextAssembler()
    for run_id, text in (("r/a-1", "one"), ("r/b-1", "two")):
        piece = TextDelta(step=1, attempt=1, seq=1, offset=0, text=text)
        reader.feed(ChildEvent(run_id=run_id, path=[run_id[2:]], event=piece))
    reader.feed(MessageFinished(index=1, step=1, text="root"))
    assert [reader.text(1, run_id) for run_id in ("r/a-1", "r/b-1", "")] == ["one", "two", "root"]


def test_tree_event_survives_json() -> None:
    """An event of a tree is plain JSON and survives a round trip."""
    event = ChildEvent(
        run_id="r/a-1", path=["a-1"], event=NodeStarted(key="b-1", node="b", run_id="r/a-1/b-1")
    )
    adapter = TypeAdapter[TreeEvent](TreeEvent)
    assert adapter.validate_json(event.model_dump_json()) == event
