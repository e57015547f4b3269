"""Following a run, with a person at the terminal and without."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from perdure.errors import InvalidRequest
from perdure.starter.cli import follow
from perdure.starter.cli.choice import chosen
from perdure.starter.cli.follow import Follower
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.wire.events import (
    ApprovalRequested,
    ChildEvent,
    Finished,
    NodeFinished,
    QuestionAsked,
    StatusChanged,
    ToolStarted,
    TreeEvent,
)
from perdure.wire.results import Approval, ApprovalAnswer, Failure, Question, RunResult, RunStatus, StopReason

NOW = datetime(2026, 11, 20, tzinfo=UTC)
HELD = Approval(call_id="call-1-1", tool="refund", arguments={"amount": 3}, digest="d", since=NOW)
ASKED = Question(call_id="call-1-1", text="Which?", since=NOW)
PARKED = StatusChanged(status="parked", doing="parked", failure=Failure(kind="payment", message="broke"))


def ended(reason: StopReason) -> Finished:
    status = "cancelled" if reason == "cancelled" else "completed"
    return Finished(status=status, result=RunResult(agent="a", stop_reason=reason))


class FakeRun:
    """Plays events; those after an `asyncio.Event` come when something was done to it."""

    id = "r"
    stuck = False

    def __init__(self, *script: TreeEvent | None) -> None:
        self.script = script
        self.done: list[tuple[str, Any]] = []
        self.acted = asyncio.Event()
        self.refusal: InvalidRequest | None = None
        self.state = RunStatus(agent="a", status="parked", doing="parked", failure=PARKED.failure)

    async def events(self) -> AsyncIterator[TreeEvent]:
        for event in self.script:
            if event is None:
                await self.acted.wait()
                self.acted.clear()
            else:
                yield event

    def did(self, what: str, detail: Any = None) -> None:
        self.done.append((what, detail))
        self.acted.set()
        if self.refusal:
            raise self.refusal

    async def resolve_approval(self, call_id: str, **decision: Any) -> ApprovalAnswer:
        self.did("resolve_approval", {"call_id": call_id, **decision, "by": None})
        return ApprovalAnswer(call_id=call_id, allow=decision["allow"])

    async def send(self, text: str, *, call_id: str, run_id: str | None) -> None:
        self.did("send", (call_id, text) if run_id is None else (run_id, call_id, text))

    async def resume(self) -> None:
        self.did("resume")

    async def stop(self) -> None:
        self.did("stop")

    async def is_stuck(self) -> bool:
        return self.stuck

    async def status(self) -> RunStatus:
        self.acted.set()
        return self.state


class FakeClient:
    task_queue = "perdure"
    works = False

    async def has_worker(self) -> bool:
        return self.works


class FakeScreen:
    def __init__(self) -> None:
        self.events: list[TreeEvent] = []
        self.notes: list[str] = []

    def show(self, event: TreeEvent) -> None:
        self.events.append(event)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def rest(self) -> None: ...


class Person:
    """Types these lines, one when asked; then nothing more."""

    def __init__(self, lines: Sequence[str | None]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def remember(self, lines: Iterable[str]) -> None: ...

    async def read(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        # A line after a `>` is typed at this prompt alone.
        wanted, _, line = (self.lines[0] or "").rpartition("> ") if self.lines else ("", "", "")
        if not self.lines or not prompt.startswith(wanted):
            await asyncio.Event().wait()
        return self.lines.pop(0) if not wanted else (self.lines.pop(0), line)[1]


async def followed(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, *lines: str | None, asks: bool = True
) -> tuple[int, FakeScreen]:
    monkeypatch.setattr(follow, "_SOON", 0.01)
    monkeypatch.setattr(follow, "_SILENCE", 0.01)
    screen = FakeScreen()
    followed = cast("Run", run)
    leave = follow.detach_message(followed.id)
    follower = Follower(
        cast("Client", FakeClient()), followed, screen, asks=asks, leave=leave, reader=Person(lines)
    )
    async with asyncio.timeout(10):
        return await follower.follow(followed.events()), screen


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended("end_turn"), 0),
        (ended("max_steps"), 4),
        (ended("stopped"), 4),
        (ended("cancelled"), 4),
        (Finished(status="failed", error=Failure(kind="bug", message="no")), 1),
    ],
)
async def test_exit_code_says_how_run_ended(
    end: Finished, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await followed(FakeRun(end), monkeypatch))[0] == code


async def test_a_person_approves_what_they_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(ApprovalRequested(approval=HELD), None, ended("end_turn"))
    code, _ = await followed(run, monkeypatch, "maybe\n", "y\n")
    expected = {"call_id": "call-1-1", "allow": True, "by": None, "reason": "", "digest": "d"}
    assert (code, run.done) == (0, [("resolve_approval", {**expected, "run_id": None})])


async def test_a_person_refuses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(ApprovalRequested(approval=HELD), None, ended("end_turn"))
    await followed(run, monkeypatch, "n too much\n")
    assert run.done[0][1]["allow"] is False
    assert run.done[0][1]["reason"] == "too much"


@pytest.mark.parametrize("line", ["d\n", None])
async def test_run_continues_without_person(line: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run continues when the person leaves."""
    run = FakeRun(ApprovalRequested(approval=HELD), None)
    code, screen = await followed(run, monkeypatch, line)
    assert (code, run.done) == (0, [])
    assert "perdure watch r" in screen.notes[-1]


async def test_a_question_is_answered_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(QuestionAsked(question=ASKED), None, ended("end_turn"))
    await followed(run, monkeypatch, "d is the one\n")
    assert run.done == [("send", ("call-1-1", "d is the one"))]


async def test_person_names_one_of_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two questions open a line must say which it answers; the one that stays open is shown again."""
    other = ASKED.model_copy(
        update={"call_id": "call-1-2", "text": "When?", "run_id": "r/~a-1", "path": ["a-1"]}
    )
    asked = [QuestionAsked(question=item) for item in (ASKED, other)]
    run = FakeRun(*asked, None, None, ended("end_turn"))
    code, screen = await followed(run, monkeypatch, "number> noon\n", "number> 2 noon\n", "your> red\n")
    assert code == 0
    assert run.done == [("send", ("r/~a-1", "call-1-2", "noon")), ("send", ("call-1-1", "red"))]
    menu = "2 questions wait; begin your answer with its number:\n  1  call-1-1  Which?\n  2  a-1/call-1-2  When?"
    assert screen.notes == [menu, menu, "still open: call-1-1  Which?"]


@pytest.mark.parametrize(
    "line", ["2 noon", "2. noon", "call-1-2 noon", "r/~a-1/call-1-2 noon", "a-1/call-1-2 noon"]
)
def test_questions_are_chosen_by_name(line: str) -> None:
    other = ASKED.model_copy(update={"call_id": "call-1-2", "run_id": "r/~a-1", "path": ["a-1"]})
    assert chosen(line, [ASKED, other]) == (other, "noon")
    assert chosen("noon", [ASKED, other]) is None
    assert chosen("2", [ASKED, other]) is None
    assert chosen(line, [other]) == (other, line)


async def test_who_decides_elsewhere_ends_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = ToolStarted(call_id="call-1-1", tool="refund", arguments={})
    run = FakeRun(ApprovalRequested(approval=HELD), decided, ended("end_turn"))
    assert (await followed(run, monkeypatch))[0] == 0


async def test_a_stand_in_is_asked_about_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call waits again, for its stand-in: that is another approval."""
    started = ToolStarted(call_id="call-1-1", tool="refund", arguments={})
    again = HELD.model_copy(update={"digest": "e", "tool": "wire"})
    asked = [ApprovalRequested(approval=item) for item in (HELD, again)]
    run = FakeRun(asked[0], None, started, asked[1], None, ended("end_turn"))
    await followed(run, monkeypatch, "y\n", "n\n")
    assert [(done["digest"], done["allow"]) for _, done in run.done] == [("d", True), ("e", False)]


def below(key: str) -> Approval:
    """The same call, held in a run below."""
    return HELD.model_copy(update={"run_id": f"r/~{key}", "path": [key]})


async def test_equal_calls_are_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal calls of two runs below are asked about twice."""
    asked = [ApprovalRequested(approval=below(key)) for key in ("a-1", "a-2")]
    run = FakeRun(*asked, None, None, ended("end_turn"))
    code, _ = await followed(run, monkeypatch, "y\n", "n no\n")
    said = [(done["run_id"], done["call_id"], done["allow"]) for _, done in run.done]
    assert (code, said) == (0, [("r/~a-1", "call-1-1", True), ("r/~a-2", "call-1-1", False)])


async def test_answer_goes_to_asking_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a question below goes to the run that asks."""
    asked = ASKED.model_copy(update={"run_id": "r/~a-1", "path": ["a-1"]})
    run = FakeRun(QuestionAsked(question=asked), None, ended("end_turn"))
    await followed(run, monkeypatch, "this\n")
    assert run.done == [("send", ("r/~a-1", "call-1-1", "this"))]


_ASKED_BELOW = ApprovalRequested(approval=below("a-1"))
_DECIDED_BELOW = ChildEvent(
    run_id="r/~a-1", path=["a-1"], event=ToolStarted(call_id="call-1-1", tool="x", arguments={})
)
_OVER_BELOW = NodeFinished(key="a-1", node="a", run_id="r/~a-1", state="cancelled")


@pytest.mark.parametrize(
    "events",
    [
        (_ASKED_BELOW, _DECIDED_BELOW),
        (_DECIDED_BELOW, _ASKED_BELOW),
        (_ASKED_BELOW, _OVER_BELOW),
    ],
    ids=["decided", "heard of late", "over"],
)
async def test_ended_child_is_not_asked_about(
    events: tuple[TreeEvent, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked about a call that is over in a run below."""
    assert (await followed(FakeRun(*events, ended("end_turn")), monkeypatch))[0] == 0


async def test_remaining_children_are_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When a run below has ended, the rest is still asked about."""
    gone = NodeFinished(key="a-1", node="a", run_id="r/~a-1", state="done")
    run = FakeRun(ApprovalRequested(approval=below("a-10")), gone, None, ended("end_turn"))
    await followed(run, monkeypatch, "y\n")
    assert [done["run_id"] for _, done in run.done] == ["r/~a-10"]


async def test_late_approval_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A late approval decision is reported and forgotten."""
    run = FakeRun(ApprovalRequested(approval=HELD), None, ended("end_turn"))
    run.refusal = InvalidRequest("it has been decided already")
    code, screen = await followed(run, monkeypatch, "y\n")
    assert (code, screen.notes) == (0, ["it has been decided already"])


async def test_run_that_parks_again_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed run that parks again is asked about again."""
    run = FakeRun(PARKED, None, None, None, ended("stopped"))
    code, screen = await followed(run, monkeypatch, "r\n", "s\n")
    assert [what for what, _ in run.done] == ["resume", "stop"]
    assert (code, screen.events.count(PARKED)) == (4, 2)


async def test_unattended_parked_run_has_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a person, a parked run is left with its exit code."""
    code, screen = await followed(FakeRun(PARKED, None), monkeypatch, asks=False)
    assert code == 3
    assert "perdure resume r" in screen.notes[-1]


async def test_missing_worker_is_explained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(None, ended("end_turn"))
    asyncio.get_running_loop().call_later(0.1, run.acted.set)
    _, screen = await followed(run, monkeypatch, asks=False)
    assert screen.notes == ["no worker takes work from task queue 'perdure'; start one: perdure worker FILE"]


async def test_failing_workflow_code_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(StatusChanged(status="thinking", doing=""), None, ended("end_turn"))
    run.stuck = True
    asyncio.get_running_loop().call_later(0.1, run.acted.set)
    _, screen = await followed(run, monkeypatch, asks=False)
    assert screen.notes == ["the worker cannot go on with the run: its log says why"]
