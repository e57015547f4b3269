"""Answers of a run: its status, its result, and what waits for a person, as plain JSON."""

from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, cast

from pydantic import Field, JsonValue

from perdure.messages import Message, ResultPart, Usage, Value, is_empty
from perdure.outputs import Output
from perdure.shown import call_text

# Statuses that a run and a list both know. A list says `working` for `thinking` and `acting`: these change
# with each call, and each change of a search attribute is an event and a write to the server's index.
_SharedStatus = Literal[
    "waiting_approval",
    "waiting_person",
    "paused",
    "parked",
    "idle",
    "stopping",
    "completed",
    "failed",
    "cancelled",
]
Status = Literal["thinking", "acting", _SharedStatus]
ListedStatus = Literal["working", _SharedStatus]
"""Status in lists and in the search attribute."""
StopReason = Literal[
    "end_turn",
    "max_steps",
    "max_tool_calls",
    "max_tokens",
    "token_budget",
    "cost_budget",
    "deadline",
    "stopped",
    "cancelled",
    "refusal",
    "guardrail",
    "context_overflow",
    "error",
    "max_handoffs",
    "max_iterations",
    "repetitive_handoff",
    "max_node_executions",
    "node_timeout",
    "unmet_join",
    "handoff",
    "idle",
]
ENDED: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled"})


def listed_status(status: Status) -> ListedStatus:
    """Return the status as lists and the search attribute have it."""
    match status:
        case "thinking" | "acting":
            return "working"
        case _:
            return status


class Approval(Value):
    """Tool call that waits until a person allows or denies it."""

    kind: Literal["approval"] = "approval"
    call_id: str
    tool: str
    arguments: dict[str, Any]
    digest: str
    """SHA-256 of run, call, tool and arguments. It is unique in the tree, and a decision that names it applies to
    exactly this call."""
    since: datetime
    run_id: str = ""
    """Run whose call waits: this run, or one below it."""
    path: list[str] = Field(default_factory=list[str])
    """Keys of the runs on the way from the queried run to the one that waits."""
    reason: str = Field(default="", exclude_if=is_empty)
    """Reason of the hook that asks."""

    @property
    def text(self) -> str:
        """The call as a person must see it: whole, with every character visible."""
        return call_text(self.tool, self.arguments)


class ApprovalAnswer(Value):
    """Answer of `resolve_approval`: the decision that holds for the call."""

    call_id: str
    run_id: str = ""
    """Run whose call was decided."""
    allow: bool
    by: str = ""
    at: datetime | None = None
    repeated: bool = Field(default=False, exclude_if=is_empty)
    """True when the same decision had been made before; then it is this earlier one."""
    words: str = ""
    """The decision for people, such as "already approved by lee at 2026-11-30 19:40:01 UTC"."""


class Question(Value):
    """Question of an agent to a person. A message that names its `call_id` answers it."""

    kind: Literal["question"] = "question"
    call_id: str
    text: str
    since: datetime
    run_id: str = ""
    path: list[str] = Field(default_factory=list[str])


class Receipt(Value):
    """Answer of `send`: what has become of the message."""

    for_any_client: ClassVar[bool] = True
    unread: int = 0
    """Number of messages that the run has accepted and its model has not read."""
    call_id: str = Field(default="", exclude_if=is_empty)
    """Question that the message answered; empty: it answered none."""
    run_id: str = Field(default="", exclude_if=is_empty)
    """Run that asked it, or the run below that took the message."""
    repeated: bool = Field(default=False, exclude_if=is_empty)
    """True when the same message had come before: it changed nothing."""
    words: str = ""
    """The same for people, with the questions that still wait."""


class CallStatus(Value):
    """Tool call of the current step."""

    call_id: str
    tool: str
    arguments: dict[str, Any]
    state: Literal["ready", "waiting", "running", "done"]
    is_error: bool = False
    not_run: bool = Field(default=False, exclude_if=is_empty)
    """True when the call was answered without having been started."""
    summary: str = ""
    """Beginning of the result."""


class Failure(Value):
    """Cause for which a run is parked, or failed."""

    kind: str
    message: str
    model: str | None = None
    step: int = 0
    since: datetime | None = Field(default=None, exclude_if=is_empty)
    """Of a parked run: time at which it parked."""
    resumes_at: datetime | None = Field(default=None, exclude_if=is_empty)
    """Of a parked run: time at which it retries by itself; None: a person must `resume` it."""


class Parked(Value):
    """Run that is parked until a person removes the cause and sends `resume`."""

    kind: Literal["parked"] = "parked"
    call_id: str = ""
    """Always empty: no call waits for a decision."""
    failure: Failure
    run_id: str = ""
    path: list[str] = Field(default_factory=list[str])


Waiting = Approval | Question | Parked
"""Matter that waits for a person."""

TEAM_KINDS: Final = ("swarm", "graph", "pattern")
"""Kinds of runs that only direct others: their status lists every run of a node."""

NodeState = Literal["running", "done", "failed", "skipped", "cancelled"]


class NodeStatus(Value):
    """Status of a node's run: of a graph's node, a swarm's agent, or an agent called as a tool."""

    key: str
    """Unique within the run: the node's name and the number of the visit, such as "draft-2"."""
    node: str
    kind: Literal["agent", "swarm", "graph", "pattern", "function"] = "agent"
    state: NodeState = "running"
    run_id: str | None = None
    """Workflow id of the child; None for a function."""
    stop_reason: StopReason | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int | None = 0
    per_tool: dict[str, int] = Field(default_factory=dict[str, int], exclude_if=is_empty)
    error: Failure | None = None


class NodeResult(NodeStatus):
    """Result of a node's run."""

    output: Any = None
    missing: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """What the run has left undone, unless another attempt or agent took over from it."""


class PlanItem(Value):
    """Item of an agent's plan."""

    text: str
    state: Literal["pending", "in_progress", "done", "dropped"] = "pending"


class HandedOn(Value):
    """Leftovers of a run for the run that takes over from it: after a handoff, or in another attempt of its node."""

    messages: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """Accepted messages that no model has read."""
    done: str = Field(default="", exclude_if=is_empty)
    """Calls beside the handoff with their results, in words."""
    refused: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Calls that a person has refused, a line each: the next agent should know, and not ask again."""
    not_run: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Writes that a limit has refused, a line each. They stay in the run's own result too."""
    media: list[ResultPart] = Field(default_factory=list[ResultPart], exclude_if=is_empty)
    """Images and documents of these results."""
    spilled: bool = Field(default=False, exclude_if=is_empty)
    """True when a text in `done` is cut, and names the whole for `read_result`."""


class RunResult(Value, Generic[Output]):
    """Result of a run that has ended."""

    for_any_client: ClassVar[bool] = True
    version: Literal[1] = 1
    agent: str
    output: Output = cast("Any", None)
    """Text, or with an `output_type` JSON that fits it (None when the run ended before it gave one).

    From `Run.result()` of a run that was started with the agent itself, it is a value of that type."""
    stop_reason: StopReason
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    # None and 0 differ: an unknown cost must never look like no cost.
    cost_microusd: int | None = None
    """Cost in millionths of a dollar; None when a model was used whose price is not known."""
    spec_hash: str = ""
    error: Failure | None = None
    nodes: list[NodeResult] = Field(default_factory=list[NodeResult], exclude_if=is_empty)
    """Of a swarm or graph: every run of a node, in the order in which they ended. Usage and cost above count
    each of them once."""
    shared_context: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict[str, dict[str, JsonValue]], exclude_if=is_empty
    )
    """Of a swarm: context that its agents added with their handoffs, by agent."""
    unmet: dict[str, str] = Field(default_factory=dict[str, str], exclude_if=is_empty)
    """Of a graph: nodes that never ran, with the reason."""
    answered: bool = Field(default=False, exclude_if=is_empty)
    """True when the run failed with `error` and still gave an answer: with `on_failure="answer"`, or because its
    conversation did not fit the model."""
    per_tool: dict[str, int] = Field(default_factory=dict[str, int], exclude_if=is_empty)
    """Of a run with bounds of single tools: their calls, those of the runs below it included."""
    refused_calls: dict[str, int] = Field(default_factory=dict[str, int], exclude_if=is_empty)
    """Of an agent: its own calls that a limit has refused, by tool."""
    missing: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """What the run and all below it have left undone, a line each: messages that no model has read, calls that were
    not carried out or failed, and of a run that ended early the rest of its plan."""
    handed_on: HandedOn | None = Field(default=None, exclude_if=is_empty)
    """Of a run below another: what it leaves to the run that takes over. The result of a root has none."""


class ChildResult(RunResult):
    """Result of a run for its parent, which is a run of ours and reads the blob store."""

    # A parent of fifty children would else have all their answers in its own history.
    for_any_client: ClassVar[bool] = False


class ExtensionRecord(Value):
    """Extension of a run that a limit had ended: who has granted what, and from which end it went on."""

    at: datetime
    by: str = ""
    reason: str = Field(default="", exclude_if=is_empty)
    limits: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Bounds that were replaced, with their new values."""
    ended: StopReason | None = None
    """Limit that had ended the run; None while its state is being rebuilt."""
    execution_id: str = ""
    """Closed execution from which the run goes on."""

    def is_of(self, *, by: str, reason: str, limits: dict[str, JsonValue]) -> bool:
        """Return whether it is the extension that somebody asks for with these words and limits."""
        return (self.by, self.reason, self.limits) == (by, reason, limits)


class UpgradeRecord(Value):
    """Another version of its agent that a session has taken, between two turns."""

    at: datetime
    by: str = Field(default="", exclude_if=is_empty)
    reason: str = Field(default="", exclude_if=is_empty)
    before: str
    """Spec hash of the version until then."""
    after: str
    turn: int = 0
    """Last turn of the version until then."""


class UpgradeAnswer(Value):
    """Answer of `upgrade`: the versions before and after it."""

    before: str
    after: str
    changed: bool
    """False: the session has this version already, or takes it after its turn."""
    after_turn: bool = Field(default=False, exclude_if=is_empty)
    """True: a turn is under way, and ends with the version that it began with."""


class RunStatus(Value):
    """Status of a run."""

    for_any_client: ClassVar[bool] = True
    version: Literal[1] = 1
    agent: str
    status: Status
    doing: str
    """Current activity in words, for people."""
    step: int = 0
    tool_calls: int = 0
    messages: int = 0
    """Length of the transcript."""
    usage: Usage = Usage()
    cost_microusd: int | None = 0
    waiting: list[Waiting] = Field(default_factory=list[Waiting])
    """Matters that wait for a person, in this run and in all below it."""
    calls: list[CallStatus] = Field(default_factory=list[CallStatus])
    failure: Failure | None = None
    """Cause for which it is parked, failed, or cannot begin yet."""
    stop_reason: StopReason | None = None
    spec_hash: str = ""
    model: str = ""
    """Model of the chain in use now."""
    queued: int = 0
    """Number of messages sent that the model has not seen yet."""
    kind: Literal["agent", "swarm", "graph", "pattern", "session"] = "agent"
    spec_kind: Literal["agent", "swarm", "graph", "pattern"] = "agent"
    """Kind of what works: in a session, of its agent, swarm or graph."""
    nodes: list[NodeStatus] = Field(default_factory=list[NodeStatus], exclude_if=is_empty)
    """Runs of nodes, in the order of their start. Of a swarm or graph with many: those in flight and the
    newest. Of an agent: those in flight, as the results of the rest are in its transcript."""
    turn: int = Field(default=0, exclude_if=is_empty)
    """Of a session: number of the current turn, or of the last."""
    plan: list[PlanItem] = Field(default_factory=list[PlanItem], exclude_if=is_empty)
    extensions: list[ExtensionRecord] = Field(default_factory=list[ExtensionRecord], exclude_if=is_empty)
    """Extensions of the run, the oldest first."""
    upgrades: list[UpgradeRecord] = Field(default_factory=list[UpgradeRecord], exclude_if=is_empty)
    """Of a session: the newest changes of its agent's version. `spec_hash` is the version that it has."""
    next_spec_hash: str = Field(default="", exclude_if=is_empty)
    """Of a session: version that it takes after the current turn."""
    shared_context: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict[str, dict[str, JsonValue]], exclude_if=is_empty
    )


class TurnReply(Value, Generic[Output]):
    """Reply to a message to a session: the end of its turn. All numbers are of that turn."""

    for_any_client: ClassVar[bool] = True
    version: Literal[1] = 1
    message_id: str = ""
    done: bool = True
    """False while the message is kept and its turn goes on: send it again under the same id."""
    known: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False, in answers of the query only: no message has that id, or the session no longer keeps it."""
    turn: int = 0
    """Number of the turn, from 1. A message that steered a turn has that turn's number."""
    output: Output = cast("Any", None)
    text: str = ""
    """Newest text of the agent in this turn."""
    stop_reason: StopReason | None = None
    error: Failure | None = None
    """Cause for which the turn failed. The session goes on."""
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int | None = None
    messages: int = 0
    """Length of the session's transcript when the turn was over."""
    missing: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """What the turn has left undone, as in `RunResult`. Messages that it did not read get the next turn."""


class TranscriptPage(Value):
    """Messages of a transcript from `start` on, about 400 KB at most; `length` is that of the transcript."""

    for_any_client: ClassVar[bool] = True
    start: int
    length: int
    messages: list[Message]
    summary: str = Field(default="", exclude_if=is_empty)
    """Summary of the messages that the model no longer sees, when the query asks for it."""
