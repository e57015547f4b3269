"""Events of a run, for those who watch it. All plain JSON values, told apart by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.messages import Value
from perdure.wire import Approval, Failure, Question, RunResult, Status, TurnReply


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
    """A tool call waits for a person: `run.decide(approval.call_id, allow=...)`."""

    kind: Literal["approval_requested"] = "approval_requested"
    approval: Approval


class QuestionAsked(Value):
    """The agent asks a person: `run.send(answer)`."""

    kind: Literal["question_asked"] = "question_asked"
    question: Question


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
    | StatusChanged
    | Finished
    | TurnFinished,
    Field(discriminator="kind"),
]


class Reader:
    """Puts the pieces of a stream together: the text of each step, as far as it is known.

    Feed it every event in order; `text(step)` is then free of loss and repetition, whatever
    attempts were made, and equals the message's text once that has arrived.
    """

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def feed(self, event: "Event") -> None:
        """Take in the next event."""
        match event:
            case TextDelta():
                kept = self._texts.get(event.step, "")[: event.offset]
                self._texts[event.step] = kept + event.text
            case TextRestarted():
                self._texts[event.step] = ""
            case MessageFinished():
                self._texts[event.step] = event.text
            case _:
                pass

    def text(self, step: int) -> str:
        """The answer of that step so far."""
        return self._texts.get(step, "")
