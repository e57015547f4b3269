"""Events of a run, for watchers: plain JSON values, discriminated by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.messages import Value, is_empty
from perdure.wire.results import (
    Approval,
    ExtensionRecord,
    Failure,
    NodeState,
    Parked,
    PlanItem,
    Question,
    RunResult,
    Status,
    StopReason,
    TurnReply,
    UpgradeRecord,
)
from perdure.wire.spec import NodeKind


class TextDelta(Value):
    """Next piece of the answer that the model is writing.

    Within one step and attempt, pieces follow each other without gap or overlap: `offset` is the
    number of characters before this piece, `seq` the number of the heartbeat that it comes from.
    """

    kind: Literal["text"] = "text"
    step: int
    attempt: int
    seq: int
    offset: int
    text: str


class TextRestarted(Value):
    """The step's answer starts again: discard the pieces of this step so far."""

    kind: Literal["text_restarted"] = "text_restarted"
    step: int
    attempt: int


class MessageFinished(Value):
    """An assistant message has entered the transcript, at `index`."""

    kind: Literal["message"] = "message"
    index: int
    step: int
    text: str
    thinking: str = ""


class ToolStarted(Value):
    """A tool call has started."""

    kind: Literal["tool_started"] = "tool_started"
    call_id: str
    tool: str
    arguments: dict[str, Any]


class ToolProgress(Value):
    """A tool reports its progress."""

    kind: Literal["tool_progress"] = "tool_progress"
    call_id: str
    attempt: int
    text: str


class ToolFinished(Value):
    """A tool call has its result; `text` is its beginning.

    A call that was never started has no ToolStarted before it, and says so by `not_run`.
    """

    kind: Literal["tool_finished"] = "tool_finished"
    call_id: str
    tool: str
    is_error: bool
    text: str
    not_run: bool = Field(default=False, exclude_if=is_empty)
    """True when the call was refused, wrong, cut, or came too late: its tool did nothing."""


class Retrying(Value):
    """A model or tool call failed and is retried."""

    kind: Literal["retrying"] = "retrying"
    call: str
    attempt: int
    """Number of the next attempt."""
    error: str


class ApprovalRequested(Value):
    """A tool call of the run, or of a run below it, waits for a person.

    `run.resolve_approval(approval.call_id, allow=..., run_id=approval.run_id)` allows or denies it.
    """

    kind: Literal["approval_requested"] = "approval_requested"
    approval: Approval


class QuestionAsked(Value):
    """An agent asks a person. `run.send(answer, run_id=question.run_id)` answers."""

    kind: Literal["question_asked"] = "question_asked"
    question: Question


class ParkedBelow(Value):
    """A run below is parked until a person removes the cause and calls `run.resume()` of the root."""

    kind: Literal["parked_below"] = "parked_below"
    parked: Parked


class NodeStarted(Value):
    """The run has started a child run: of a swarm's agent, a graph's node, or an agent called as a tool."""

    kind: Literal["node_started"] = "node_started"
    key: str
    node: str
    node_kind: NodeKind = "agent"
    run_id: str | None = None
    """None for a function of a graph."""


class NodeFinished(Value):
    """A child run has ended. Every NodeStarted is followed by exactly one NodeFinished of its key."""

    kind: Literal["node_finished"] = "node_finished"
    key: str
    node: str
    node_kind: NodeKind = "agent"
    run_id: str | None = None
    state: NodeState
    stop_reason: StopReason | None = None
    steps: int = 0
    cost_microusd: int | None = 0


class PlanChanged(Value):
    """The agent has replaced its plan; `items` is the whole plan."""

    kind: Literal["plan"] = "plan"
    items: list[PlanItem]


class StatusChanged(Value):
    """The run's status has changed."""

    kind: Literal["status"] = "status"
    status: Status
    doing: str
    failure: Failure | None = None


class Extended(Value):
    """A run, or the turn of a session, that a limit had ended was given more, and goes on."""

    kind: Literal["extended"] = "extended"
    extension: ExtensionRecord


class AgentChanged(Value):
    """A session has taken another version of its agent."""

    kind: Literal["agent_changed"] = "agent_changed"
    upgrade: UpgradeRecord


class EventsMissing(Value):
    """Events before this one are missing, and do not come any more: no worker could be asked for them.

    The transcript has everything, as soon as a worker answers again.
    """

    kind: Literal["events_missing"] = "events_missing"
    reason: str


class Finished(Value):
    """The run has ended. Nothing follows."""

    kind: Literal["finished"] = "finished"
    status: Literal["completed", "failed", "cancelled"]
    result: RunResult | None = None
    error: Failure | None = None


class TurnFinished(Value):
    """A turn of a session has ended. Nothing follows, though the session goes on."""

    kind: Literal["turn_finished"] = "turn_finished"
    reply: TurnReply


Event = Annotated[
    TextDelta
    | TextRestarted
    | MessageFinished
    | ToolStarted
    | ToolProgress
    | ToolFinished
    | Retrying
    | ApprovalRequested
    | QuestionAsked
    | ParkedBelow
    | NodeStarted
    | NodeFinished
    | PlanChanged
    | StatusChanged
    | Extended
    | AgentChanged
    | EventsMissing
    | Finished
    | TurnFinished,
    Field(discriminator="kind"),
]


class ChildEvent(Value):
    """Event of a run below the watched run.

    All events of a child come between its NodeStarted and its NodeFinished; the last is `Finished`.
    Matters that wait for a person come from the root only, with the path to them.
    """

    kind: Literal["child"] = "child"
    run_id: str
    path: list[str]
    """Keys of nodes from the watched run to this run."""
    event: Event


TreeEvent = Annotated[Event | ChildEvent, Field(discriminator="kind")]
"""Event of a watched tree."""


class TextAssembler:
    """Assembler of streamed pieces into the text of each step.

    Feed it every event in order. `text(step)` then has neither gaps nor repetitions, whatever attempts were
    made, and equals the message's text once that has arrived. `text(step, run_id)` is that of a run below.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, int], str] = {}

    def feed(self, event: "TreeEvent") -> None:
        """Take in the next event of the stream."""
        if isinstance(event, ChildEvent):
            self._feed(event.run_id, event.event)
        else:
            self._feed("", event)

    def _feed(self, run_id: str, event: "Event") -> None:
        match event:
            case TextDelta():
                # An offset within the text so far: the text from there on is replaced.
                before = self.text(event.step, run_id)[: event.offset]
                self._texts[run_id, event.step] = before + event.text
            case TextRestarted():
                self._texts[run_id, event.step] = ""
            case MessageFinished():
                # The finished message replaces its pieces, so a lost piece does no harm.
                self._texts[run_id, event.step] = event.text
            case _:
                pass

    def text(self, step: int, run_id: str = "") -> str:
        """Return the text of that step so far, of the run below with that id or of the watched run."""
        return self._texts.get((run_id, step), "")
