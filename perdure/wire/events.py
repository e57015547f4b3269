"""Events of a run, for those who watch it. All plain JSON values, told apart by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.messages import Value
from perdure.wire.results import (
    Approval,
    Failure,
    NodeState,
    Parked,
    PlanItem,
    Question,
    RunResult,
    Status,
    StopReason,
    TurnReply,
)
from perdure.wire.spec import NodeKind


class TextDelta(Value):
    """The next piece of the answer being written.

    Within one step and attempt, pieces follow each other without gap or overlap: `offset` is the
    number of characters before this one, `seq` the number of the report it was taken from.
    """

    kind: Literal["text"] = "text"
    step: int
    attempt: int
    seq: int
    offset: int
    text: str


class TextRestarted(Value):
    """The step's answer is being written anew: forget the pieces of this step so far."""

    kind: Literal["text_restarted"] = "text_restarted"
    step: int
    attempt: int


class MessageFinished(Value):
    """An assistant message is in the transcript, at `index`."""

    kind: Literal["message"] = "message"
    index: int
    step: int
    text: str
    thinking: str = ""


class ToolStarted(Value):
    """A tool call is under way."""

    kind: Literal["tool_started"] = "tool_started"
    call_id: str
    tool: str
    arguments: dict[str, Any]


class ToolProgress(Value):
    """A tool says how far it is."""

    kind: Literal["tool_progress"] = "tool_progress"
    call_id: str
    attempt: int
    text: str


class ToolFinished(Value):
    """A tool call has its result; `text` is its beginning."""

    kind: Literal["tool_finished"] = "tool_finished"
    call_id: str
    tool: str
    is_error: bool
    text: str


class Retrying(Value):
    """A model or tool call failed and is tried again."""

    kind: Literal["retrying"] = "retrying"
    call: str
    attempt: int
    """The attempt that comes next."""
    error: str


class ApprovalRequested(Value):
    """A tool call of the run, or of one below it, waits for a person.

    `run.resolve_approval(approval.call_id, allow=..., run_id=approval.run_id)` allows or denies it.
    """

    kind: Literal["approval_requested"] = "approval_requested"
    approval: Approval


class QuestionAsked(Value):
    """An agent asks a person: `run.send(answer, run_id=question.run_id)`."""

    kind: Literal["question_asked"] = "question_asked"
    question: Question


class ParkedBelow(Value):
    """A run below cannot go on until a person has mended the cause: `run.resume()`, of the root."""

    kind: Literal["parked_below"] = "parked_below"
    parked: Parked


class NodeStarted(Value):
    """The run has started another: of a swarm's agent, a graph's node, an agent called as a tool."""

    kind: Literal["node_started"] = "node_started"
    key: str
    node: str
    node_kind: NodeKind = "agent"
    run_id: str | None = None
    """None for a function of a graph."""


class NodeFinished(Value):
    """What the run had started is over; every NodeStarted has its one NodeFinished."""

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
    """The agent's plan is this now, whole."""

    kind: Literal["plan"] = "plan"
    items: list[PlanItem]


class StatusChanged(Value):
    """The run's status is another one now."""

    kind: Literal["status"] = "status"
    status: Status
    doing: str
    failure: Failure | None = None


class Finished(Value):
    """The run is over. Nothing follows."""

    kind: Literal["finished"] = "finished"
    status: Literal["completed", "failed", "cancelled"]
    result: RunResult | None = None
    error: Failure | None = None


class TurnFinished(Value):
    """A turn of a session is over: nothing follows, though the session goes on."""

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
    | Finished
    | TurnFinished,
    Field(discriminator="kind"),
]


class ChildEvent(Value):
    """What happens in a run below the one that is watched.

    Between its NodeStarted and its NodeFinished come all events of a child, the last `Finished`.
    What waits for a person is told by the root, with the path to it, and not again by those between.
    """

    kind: Literal["child"] = "child"
    run_id: str
    path: list[str]
    """From the run that is watched to this one: keys of nodes."""
    event: Event


TreeEvent = Annotated[Event | ChildEvent, Field(discriminator="kind")]
"""What a watcher of a whole tree is told."""


class Reader:
    """Puts the pieces of a stream together: the text of each step, as far as it is known.

    Feed it every event in order; `text(step)` is then free of loss and repetition, whatever
    attempts were made, and equals the message's text once that has arrived. Of a tree it keeps
    the runs apart: `text(step, run_id)`.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, int], str] = {}

    def feed(self, event: "TreeEvent") -> None:
        """Take in the next event."""
        if isinstance(event, ChildEvent):
            self._feed(event.run_id, event.event)
        else:
            self._feed("", event)

    def _feed(self, run_id: str, event: "Event") -> None:
        match event:
            case TextDelta():
                kept = self.text(event.step, run_id)[: event.offset]
                self._texts[run_id, event.step] = kept + event.text
            case TextRestarted():
                self._texts[run_id, event.step] = ""
            case MessageFinished():
                self._texts[run_id, event.step] = event.text
            case _:
                pass

    def text(self, step: int, run_id: str = "") -> str:
        """The answer of that step so far; of the run below with that id, or of the watched one."""
        return self._texts.get((run_id, step), "")
