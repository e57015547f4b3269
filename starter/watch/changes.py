"""Changes of a run since the poll before, as events. Pure: states in, events out.

A tracker is fed what the server and a worker know of the run, in this order at each poll: messages, status,
pending activities. The sources overlap and may be of different ages. The tracker remembers what it has
reported, so each event comes once, whichever source showed it first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from perdure.messages import Message, Text, Thinking, ToolCall, ToolResult
from perdure.wire.effects import Progress
from perdure.wire.events import (
    AgentChanged,
    ApprovalRequested,
    Event,
    EventsMissing,
    Extended,
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
    TurnReply,
    Waiting,
)

# Characters of a tool's result in its event.
_SUMMARY: Final = 200
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class PendingActivity:
    """A pending activity, as the server describes it."""

    progress: Progress | None
    attempt: int
    error: str | None
    """Message of the last attempt's failure."""


@dataclass(kw_only=True)
class _StreamedText:
    """Text of a step that was reported so far, and the attempt that wrote it."""

    attempt: int = 0
    text: str = ""


@dataclass
class ChangeTracker:
    """State of a run as its watcher was last told."""

    messages: int = 0
    """Messages of the transcript reported, or skipped by the watcher's wish."""
    is_team: bool = False
    """True of a swarm's, a graph's or their session's watcher."""
    last_step: int = 0
    """Newest step whose answer is in the transcript."""
    status: Status | None = None
    cause: str | None = None
    """Kind of the failure for which the run is parked until a person resumes it, or cannot begin yet."""
    texts: dict[int, _StreamedText] = field(default_factory=dict[int, _StreamedText])
    """By step, until its message is there."""
    calls: dict[str, ToolCall] = field(default_factory=dict[str, ToolCall])
    """Calls of the transcript without a result, by id."""
    remembered: set[str] = field(default_factory=set[str])
    """Ids of calls of an earlier run, which this run only reads of."""
    started: set[str] = field(default_factory=set[str])
    finished: set[str] = field(default_factory=set[str])
    waiting: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """By run and call: in a tree the same call id may wait in several runs."""
    nodes: dict[str, NodeStatus] = field(default_factory=dict[str, NodeStatus])
    """Child runs by key, as they were reported."""
    call_runs: dict[str, NodeStatus] = field(default_factory=dict[str, NodeStatus])
    """Runs of agents called as tools, as they are now, by call id."""
    plan: list[PlanItem] = field(default_factory=list[PlanItem])
    extensions: int = 0
    """Number of extensions that were reported."""
    upgraded_at: datetime | None = None
    """Time of the newest upgrade that was reported."""
    notes: dict[str, str] = field(default_factory=dict[str, str])
    """Newest progress note of each running call."""
    retries: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    """By call and attempt."""

    def skip_changes(self, status: RunStatus) -> None:
        """Take extensions and upgrades as reported that the status knows."""
        self.extensions = len(status.extensions)
        self.upgraded_at = max((upgrade.at for upgrade in status.upgrades), default=None)

    def track_pending(self, pending: Sequence[PendingActivity]) -> Iterator[Event]:
        """Yield partial text, progress of tools, and retries."""
        for activity in pending:
            progress = activity.progress
            # The description may be older than the transcript, and still hold a call that has ended.
            if progress is None or self._has_ended(progress.call):
                continue
            if activity.error and (progress.call, activity.attempt) not in self.retries:
                self.retries.add((progress.call, activity.attempt))
                yield Retrying(call=progress.call, attempt=activity.attempt, error=activity.error)
            step = step_of(progress.call)
            if step is not None:
                yield from self._partial_text(step, progress)
            elif progress.note and self._is_running(progress.call) and self._is_new_note(progress):
                self.notes[progress.call] = progress.note
                yield ToolProgress(call_id=progress.call, attempt=progress.attempt, text=progress.note)

    def _is_running(self, call_id: str) -> bool:
        # A note that comes before the ToolStarted of its call is not lost: heartbeats repeat it.
        return call_id in self.started and call_id not in self.finished

    def _has_ended(self, call: str) -> bool:
        step = step_of(call)
        return call in self.finished or (step is not None and step <= self.last_step)

    def _is_new_note(self, progress: Progress) -> bool:
        return self.notes.get(progress.call) != progress.note

    def _partial_text(self, step: int, progress: Progress) -> Iterator[Event]:
        streamed = self.texts.setdefault(step, _StreamedText(attempt=progress.attempt))
        # Attempts are counted anew when another model of the chain takes over, or the run is resumed. So the
        # number alone does not tell whether the text goes on.
        if progress.attempt != streamed.attempt or not _continues(streamed.text, progress):
            if streamed.text:
                yield TextRestarted(step=step, attempt=progress.attempt)
            streamed.attempt, streamed.text = progress.attempt, ""
        # A window that starts beyond the reported text leaves a gap. The rest then comes with the message.
        has_gap = progress.offset > len(streamed.text)
        new = "" if has_gap else progress.text[len(streamed.text) - progress.offset :]
        if new:
            yield self._delta(step, streamed, new, progress.seq)

    def _delta(self, step: int, streamed: _StreamedText, new: str, seq: int) -> TextDelta:
        offset = len(streamed.text)
        streamed.text += new
        return TextDelta(step=step, attempt=streamed.attempt, seq=seq, offset=offset, text=new)

    def track_messages(self, messages: Sequence[Message]) -> Iterator[Event]:
        """Yield answers, and starts and ends of tool calls. `messages` follow those seen so far."""
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
        if message.meta is None and not self.is_team:
            # An answer of an earlier run or turn, which this run was given to read, and with it its calls.
            self.remembered.update(call.id for call in message.tool_calls)
            return
        step = message.meta.step if message.meta else 0
        attempt = message.meta.attempts if message.meta else 1
        self.last_step = max(self.last_step, step)
        text = "".join(part.text for part in message.parts if isinstance(part, Text))
        # From here on the message is the text; a later, older description must not open it again.
        streamed = self.texts.pop(step, _StreamedText(attempt=attempt))
        yield from self._complete(step, streamed, text, attempt)
        thinking = "".join(part.text for part in message.parts if isinstance(part, Thinking))
        yield MessageFinished(index=self.messages, step=step, text=text, thinking=thinking)
        self.calls.update({call.id: call for call in message.tool_calls})

    def _complete(self, step: int, streamed: _StreamedText, text: str, attempt: int) -> Iterator[Event]:
        """Yield what is missing of a step's text, from the beginning if another attempt wrote it."""
        if streamed.text and (streamed.attempt != attempt or not text.startswith(streamed.text)):
            yield TextRestarted(step=step, attempt=attempt)
            streamed.text = ""
        streamed.attempt = attempt
        if len(text) > len(streamed.text):
            yield self._delta(step, streamed, text[len(streamed.text) :], 0)

    def _result(self, result: ToolResult) -> Iterator[Event]:
        if result.call_id in self.remembered:
            return
        call = self.calls.pop(result.call_id, None)
        if not result.not_run:
            yield from self._start(result.call_id, result.name, call.arguments if call else {})
        text = result.text[:_SUMMARY]
        yield from self._finish(result.call_id, result.name, result.is_error, text, not_run=result.not_run)

    def _start(self, call_id: str, tool: str, arguments: dict[str, object]) -> Iterator[Event]:
        if call_id not in self.started:
            self.started.add(call_id)
            yield ToolStarted(call_id=call_id, tool=tool, arguments=arguments)
            if call_id in self.call_runs:
                yield from self._node_started(self.call_runs[call_id])

    def _finish(
        self, call_id: str, tool: str, is_error: bool, text: str, *, not_run: bool
    ) -> Iterator[Event]:
        if call_id not in self.finished:
            self.finished.add(call_id)
            self.notes.pop(call_id, None)
            if call_id in self.call_runs:
                yield from self._node_ended(self.call_runs[call_id])
            yield ToolFinished(call_id=call_id, tool=tool, is_error=is_error, text=text, not_run=not_run)

    def track_status(self, status: RunStatus, nodes: Sequence[NodeStatus] | None = None) -> Iterator[Event]:
        """Yield changes of the run itself, its calls and its plan. Call it after `track_messages`.

        `nodes` are its child runs, where more is known of them than the status says.
        """
        for call in status.calls:
            if call.state in ("running", "done") and not call.not_run:
                yield from self._start(call.call_id, call.tool, call.arguments)
            if call.state == "done":
                yield from self._finish(
                    call.call_id, call.tool, call.is_error, call.summary, not_run=call.not_run
                )
        yield from self.track_nodes(status.nodes if nodes is None else nodes)
        shown = (status.status, _cause(status))
        # The end has an event of its own, `Finished`, with the result.
        if shown != (self.status, self.cause) and status.status not in ENDED:
            self.status, self.cause = shown
            yield StatusChanged(status=status.status, doing=status.doing, failure=_failure(status))
        for extension in status.extensions[self.extensions :]:
            self.extensions += 1
            yield Extended(extension=extension)
        for upgrade in status.upgrades:
            if self.upgraded_at is None or upgrade.at > self.upgraded_at:
                self.upgraded_at = upgrade.at
                yield AgentChanged(upgrade=upgrade)
        if status.plan != self.plan:
            self.plan = status.plan
            yield PlanChanged(items=status.plan)
        yield from self._track_waiting(status.waiting)

    def _track_waiting(self, waiting: Sequence[Waiting]) -> Iterator[Event]:
        current = {_waiting_key(item): item for item in waiting}
        # Re-parking is reported again; an approval and a question are reported once.
        self.waiting = {key for key in self.waiting if key in current or key[1]}
        for key, item in current.items():
            if key in self.waiting:
                continue
            self.waiting.add(key)
            match item:
                case Approval():
                    yield ApprovalRequested(approval=item)
                case Question():
                    yield QuestionAsked(question=item)
                case Parked():
                    yield ParkedBelow(parked=item)

    def set_call_runs(self, nodes: Sequence[NodeStatus]) -> None:
        """Set the runs of agents called as tools: their events come inside those of their calls."""
        # Replaced, not merged: the list is complete, and ended runs stay in it.
        self.call_runs = {call_id_of(node.key): node for node in nodes}

    def track_nodes(self, nodes: Sequence[NodeStatus]) -> Iterator[Event]:
        """Yield starts and ends of child runs, in the order in which they happened."""
        moments: list[tuple[datetime, NodeStatus, bool]] = []
        for node in nodes:
            moments.append((node.started_at or _LONG_AGO, node, False))
            if node.state != "running":
                moments.append((node.ended_at or node.started_at or _LONG_AGO, node, True))
        # The sort is stable: a node that began and ended in the same instant began first.
        for _, node, ended in sorted(moments, key=lambda moment: moment[0]):
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
        """Yield what is left to report when the run has ended: each NodeStarted gets its NodeFinished.

        `behind` says that no worker could be asked for the last messages.
        """
        knows_all = result is not None and result.steps == self.last_step and not self.calls
        if behind and result is not None and result.stop_reason == "end_turn" and not result.nodes:
            yield from self._last_text(result)
        yield from self.track_nodes(nodes_in_result(result) if result else [])
        for node in list(self.nodes.values()):
            yield from self._node_ended(
                node.model_copy(update={"state": "cancelled", "stop_reason": "cancelled"})
            )
        if behind and not knows_all:
            yield EventsMissing(reason="the run has ended, and no worker answers questions about it")

    def is_whole(self, reply: TurnReply) -> bool:
        """Return whether every message up to the end of the turn was reported."""
        return self.messages >= reply.messages

    def track_turn_end(self, reply: TurnReply) -> Iterator[Event]:
        """Yield what is left to report when a turn has ended and no worker answers: its text, from the reply itself."""
        if self.is_whole(reply):
            return
        missing = reply.messages - self.messages
        if isinstance(reply.output, str) and reply.text and reply.stop_reason == "end_turn":
            step = max([self.last_step + 1, *self.texts])
            streamed = self.texts.pop(step, _StreamedText(attempt=1))
            self.last_step, self.messages = step, reply.messages
            yield from self._complete(step, streamed, reply.text, streamed.attempt)
            yield MessageFinished(index=reply.messages - 1, step=step, text=reply.text)
            missing -= 1
        if missing:
            yield EventsMissing(
                reason=f"the turn has ended, and no worker was asked for {missing} of its messages"
            )

    def _last_text(self, result: RunResult) -> Iterator[Event]:
        # The transcript is the worker's, but the server knows the result, which ends with the last answer.
        output = result.output
        if result.steps <= self.last_step or not isinstance(output, str):
            return
        streamed = self.texts.pop(result.steps, _StreamedText(attempt=1))
        self.last_step = result.steps
        yield from self._complete(result.steps, streamed, output, streamed.attempt)


def nodes_in_result(result: RunResult) -> list[NodeStatus]:
    """Return the child runs of a swarm or graph, without their outputs."""
    return [NodeStatus(**node.model_dump(exclude={"output"})) for node in result.nodes]


def _waiting_key(item: Waiting) -> tuple[str, str]:
    match item:
        case Parked():
            return item.run_id, ""
        case Approval():
            # Not the digest alone: one of another writer may be empty.
            return item.run_id, f"{item.call_id} {item.digest}"
        case _:
            return item.run_id, item.call_id


def _cause(status: RunStatus) -> str | None:
    """Return the kind of what keeps the run parked until a person acts, or from beginning."""
    failure = status.failure
    return failure.kind if failure is not None and failure.resumes_at is None else None


def _failure(status: RunStatus) -> Failure | None:
    """Return why the run is parked: its own failure, or that of a run below it."""
    below = (item.failure for item in status.waiting if isinstance(item, Parked))
    return status.failure or (next(below, None) if status.status == "parked" else None)


def _continues(text: str, progress: Progress) -> bool:
    """Return whether the progress window agrees with the reported text, where they overlap."""
    known = text[progress.offset :]
    common = min(len(known), len(progress.text))
    return known[:common] == progress.text[:common]
