"""What changed since the last look at a run, as events. Pure: looks in, events out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from perdure.messages import Message, Text, Thinking, ToolCall, ToolResult
from perdure.wire.effects import Progress
from perdure.wire.events import (
    ApprovalRequested,
    Event,
    MessageFinished,
    NodeFinished,
    NodeStarted,
    ParkedBelow,
    PlanChanged,
    QuestionAsked,
    Retrying,
    StatusChanged,
    TextDelta,
    TextRestarted,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from perdure.wire.ids import call_id_of, step_of
from perdure.wire.results import (
    ENDED,
    Approval,
    Failure,
    NodeStatus,
    Parked,
    PlanItem,
    Question,
    RunResult,
    RunStatus,
    Status,
    Waiting,
)

_SUMMARY: Final = 200
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class PendingActivity:
    """An activity in flight, as the server describes it."""

    progress: Progress | None
    attempt: int
    error: str | None


@dataclass(kw_only=True)
class _Text:
    """What has been told of a step's answer."""

    attempt: int = 0
    told: str = ""


@dataclass
class ChangeTracker:
    """What a watcher has been told already."""

    messages: int = 0
    answered: int = 0
    """The newest step whose answer is in the transcript."""
    status: Status | None = None
    stuck: str | None = None
    """What it is parked for until a person has mended it."""
    texts: dict[int, _Text] = field(default_factory=dict[int, _Text])
    calls: dict[str, ToolCall] = field(default_factory=dict[str, ToolCall])
    started: set[str] = field(default_factory=set[str])
    finished: set[str] = field(default_factory=set[str])
    waiting: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """By run and call: in a tree the same call id may wait in several runs."""
    nodes: dict[str, NodeStatus] = field(default_factory=dict[str, NodeStatus])
    """Runs below by key, as they were told."""
    of_calls: dict[str, NodeStatus] = field(default_factory=dict[str, NodeStatus])
    """Runs of agents called as tools, as they are now, by call id."""
    plan: list[PlanItem] = field(default_factory=list[PlanItem])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    retries: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def track_pending(self, pending: list[PendingActivity]) -> Iterator[Event]:
        """News of what is in flight: partial text, a tool's progress, a retry."""
        for activity in pending:
            progress = activity.progress
            # The description may be older than the transcript: what is over is no news.
            if progress is None or self._is_over(progress.call):
                continue
            if activity.error and (progress.call, activity.attempt) not in self.retries:
                self.retries.add((progress.call, activity.attempt))
                yield Retrying(call=progress.call, attempt=activity.attempt, error=activity.error)
            step = step_of(progress.call)
            if step is not None:
                yield from self._partial(step, progress)
            elif progress.note and self._is_running(progress.call) and self._is_news(progress):
                self.notes[progress.call] = progress.note
                yield ToolProgress(call_id=progress.call, attempt=progress.attempt, text=progress.note)

    def _is_running(self, call_id: str) -> bool:
        """Told as started, and not yet as finished: what it says before will be said again."""
        return call_id in self.started and call_id not in self.finished

    def _is_over(self, call: str) -> bool:
        step = step_of(call)
        return call in self.finished or (step is not None and step <= self.answered)

    def _is_news(self, progress: Progress) -> bool:
        return self.notes.get(progress.call) != progress.note

    def _partial(self, step: int, progress: Progress) -> Iterator[Event]:
        text = self.texts.setdefault(step, _Text(attempt=progress.attempt))
        # Attempts are counted anew when another model of the chain takes over, or the run is resumed.
        if progress.attempt != text.attempt or not _continues(text.told, progress):
            if text.told:
                yield TextRestarted(step=step, attempt=progress.attempt)
            text.attempt, text.told = progress.attempt, ""
        # A window that starts beyond what was told leaves a hole: hold back until the message is there.
        new = progress.text[len(text.told) - progress.offset :] if progress.offset <= len(text.told) else ""
        if new:
            yield self._delta(step, text, new, progress.seq)

    def _delta(self, step: int, text: _Text, new: str, seq: int) -> TextDelta:
        delta = TextDelta(step=step, attempt=text.attempt, seq=seq, offset=len(text.told), text=new)
        text.told += new
        return delta

    def track_messages(self, messages: list[Message]) -> Iterator[Event]:
        """News of the transcript: `messages` follow those seen so far."""
        for message in messages:
            match message.role:
                case "assistant":
                    yield from self._answer(message)
                case "tool":
                    for result in message.tool_results:
                        yield from self._result(result)
                case "user":
                    pass
            self.messages += 1

    def _answer(self, message: Message) -> Iterator[Event]:
        step = message.meta.step if message.meta else 0
        attempt = message.meta.attempts if message.meta else 1
        self.answered = max(self.answered, step)
        whole = "".join(part.text for part in message.parts if isinstance(part, Text))
        text = self.texts.pop(step, _Text(attempt=attempt))
        if text.told and (text.attempt != attempt or not whole.startswith(text.told)):
            yield TextRestarted(step=step, attempt=attempt)
            text.told = ""
        text.attempt = attempt
        if len(whole) > len(text.told):
            yield self._delta(step, text, whole[len(text.told) :], 0)
        thinking = "".join(part.text for part in message.parts if isinstance(part, Thinking))
        yield MessageFinished(index=self.messages, step=step, text=whole, thinking=thinking)
        self.calls.update({call.id: call for call in message.tool_calls})

    def _rest(self, result: RunResult) -> Iterator[Event]:
        """What is missing of the last answer. The server knows it, though the transcript is the worker's."""
        output = result.output
        if result.steps <= self.answered or not isinstance(output, str):
            return
        text = self.texts.pop(result.steps, _Text(attempt=1))
        self.answered = result.steps
        if not output.startswith(text.told):
            yield TextRestarted(step=result.steps, attempt=text.attempt)
            text.told = ""
        if len(output) > len(text.told):
            yield self._delta(result.steps, text, output[len(text.told) :], 0)

    def _result(self, result: ToolResult) -> Iterator[Event]:
        call = self.calls.get(result.call_id)
        yield from self._start(result.call_id, result.name, call.arguments if call else {})
        yield from self._finish(result.call_id, result.name, result.is_error, result.text[:_SUMMARY])
        self.calls.pop(result.call_id, None)

    def _start(self, call_id: str, tool: str, arguments: dict[str, object]) -> Iterator[Event]:
        if call_id not in self.started:
            self.started.add(call_id)
            yield ToolStarted(call_id=call_id, tool=tool, arguments=arguments)
            if call_id in self.of_calls:
                yield from self._node_started(self.of_calls[call_id])

    def _finish(self, call_id: str, tool: str, is_error: bool, text: str) -> Iterator[Event]:
        if call_id not in self.finished:
            self.finished.add(call_id)
            self.notes.pop(call_id, None)
            if call_id in self.of_calls:
                yield from self._node_ended(self.of_calls[call_id])
            yield ToolFinished(call_id=call_id, tool=tool, is_error=is_error, text=text)

    def track_status(self, status: RunStatus, nodes: Sequence[NodeStatus] | None = None) -> Iterator[Event]:
        """News of the run itself. To be asked after `track_messages`.

        `nodes`: of what it has started, when more is known than the status says.
        """
        for call in status.calls:
            if call.state in ("running", "done"):
                yield from self._start(call.call_id, call.tool, call.arguments)
            if call.state == "done":
                yield from self._finish(call.call_id, call.tool, call.is_error, call.summary)
        yield from self.track_nodes(status.nodes if nodes is None else nodes)
        shown = (status.status, _mended_by_a_person(status))
        if shown != (self.status, self.stuck) and status.status not in ENDED:
            self.status, self.stuck = shown
            yield StatusChanged(status=status.status, doing=status.doing, failure=_failure(status))
        if status.plan != self.plan:
            self.plan = status.plan
            yield PlanChanged(items=status.plan)
        yield from self._waiting(status.waiting)

    def _waiting(self, waiting: Sequence[Waiting]) -> Iterator[Event]:
        there = {_name_of(wanted): wanted for wanted in waiting}
        # Who is resumed and parks again is news; a call waits once.
        self.waiting = {name for name in self.waiting if name in there or name[1]}
        for name, wanted in there.items():
            if name in self.waiting:
                continue
            self.waiting.add(name)
            match wanted:
                case Approval():
                    yield ApprovalRequested(approval=wanted)
                case Question():
                    yield QuestionAsked(question=wanted)
                case Parked():
                    yield ParkedBelow(parked=wanted)

    def set_call_runs(self, nodes: Sequence[NodeStatus]) -> None:
        """What is known of agents called as tools, so that their runs are told beside their calls."""
        self.of_calls = {call_id_of(node.key): node for node in nodes}

    def track_nodes(self, nodes: Sequence[NodeStatus]) -> Iterator[Event]:
        """News of the runs below, in the order in which it happened."""
        news: list[tuple[datetime, NodeStatus, bool]] = []
        for node in nodes:
            news.append((node.started_at or _LONG_AGO, node, False))
            if node.state != "running":
                news.append((node.ended_at or node.started_at or _LONG_AGO, node, True))
        for _, node, ended in sorted(news, key=lambda one: one[0]):
            yield from self._node_ended(node) if ended else self._node_started(node)

    def _node_started(self, node: NodeStatus) -> Iterator[Event]:
        if node.key not in self.nodes:
            self.nodes[node.key] = node.model_copy(update={"state": "running"})
            yield NodeStarted(key=node.key, node=node.node, node_kind=node.kind, run_id=node.run_id)

    def _node_ended(self, node: NodeStatus) -> Iterator[Event]:
        if node.state == "running":
            return
        yield from self._node_started(node)
        if self.nodes[node.key].state == "running":
            self.nodes[node.key] = node
            yield NodeFinished(
                key=node.key,
                node=node.node,
                node_kind=node.kind,
                run_id=node.run_id,
                state=node.state,
                stop_reason=node.stop_reason,
                steps=node.steps,
                cost_microusd=node.cost_microusd,
            )

    def track_end(self, result: RunResult | None, *, behind: bool = False) -> Iterator[Event]:
        """News once the run is over: no run below is left without its end. `behind`: no worker could tell of
        the last messages.
        """
        if behind and result is not None and result.stop_reason == "end_turn" and not result.nodes:
            yield from self._rest(result)
        yield from self.track_nodes(nodes_in_result(result) if result else [])
        for node in list(self.nodes.values()):
            yield from self._node_ended(
                node.model_copy(update={"state": "cancelled", "stop_reason": "cancelled"})
            )


def nodes_in_result(result: RunResult) -> list[NodeStatus]:
    """What a swarm or graph has started, without what that gave."""
    return [NodeStatus(**one.model_dump(exclude={"output"})) for one in result.nodes]


def _name_of(wanted: Waiting) -> tuple[str, str]:
    return wanted.run_id, "" if isinstance(wanted, Parked) else wanted.call_id


def _mended_by_a_person(status: RunStatus) -> str | None:
    """Why it is parked until somebody does something."""
    failure = status.failure if status.status == "parked" else None
    return failure.kind if failure is not None and failure.resumes_at is None else None


def _failure(status: RunStatus) -> Failure | None:
    """Why it is parked: for a reason of its own, or of a run below."""
    below = (one.failure for one in status.waiting if isinstance(one, Parked))
    return status.failure or (next(below, None) if status.status == "parked" else None)


def _continues(told: str, progress: Progress) -> bool:
    """Whether the window says the same as what was told, where both say something."""
    known = told[progress.offset :]
    common = min(len(known), len(progress.text))
    return known[:common] == progress.text[:common]
