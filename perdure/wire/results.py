"""What a run answers: status, result, who waits for a person. Plain JSON all of it."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from perdure.messages import Message, Usage, Value, is_empty

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
"""What lists and the search attribute say: `working` is `thinking` or `acting`. Those two change with
each call, and each change of an attribute is an event and a write to the server's index."""
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
    """The status as lists have it."""
    match status:
        case "thinking" | "acting":
            return "working"
        case _:
            return status


class Approval(Value):
    """A tool call held until a person decides."""

    kind: Literal["approval"] = "approval"
    call_id: str
    tool: str
    arguments: dict[str, Any]
    digest: str
    """SHA-256 of tool and arguments: what exactly is being allowed."""
    since: datetime
    run_id: str = ""
    """The run that waits: this one, or one that it started, directly or through others."""
    path: list[str] = Field(default_factory=list[str])
    """From the run that was asked to the one that waits: the names of nodes, agents, calls between."""


class Question(Value):
    """A question of the agent to a person; `send` answers it."""

    kind: Literal["question"] = "question"
    call_id: str
    text: str
    since: datetime
    run_id: str = ""
    path: list[str] = Field(default_factory=list[str])


class CallStatus(Value):
    """A tool call of the step in hand."""

    call_id: str
    tool: str
    arguments: dict[str, Any]
    state: Literal["ready", "waiting", "running", "done"]
    is_error: bool = False
    summary: str = ""
    """The beginning of the result."""


class Failure(Value):
    """Why a run is parked, or failed."""

    kind: str
    message: str
    model: str | None = None
    step: int = 0
    since: datetime | None = Field(default=None, exclude_if=is_empty)
    """Of a parked run: since when."""
    resumes_at: datetime | None = Field(default=None, exclude_if=is_empty)
    """Of a parked run: when it tries again by itself; None: a person must `resume` it."""


class Parked(Value):
    """A run below that cannot go on until a person has mended something; `resume` goes on from there."""

    kind: Literal["parked"] = "parked"
    call_id: str = ""
    """No call waits: nothing is to be decided, `resume` is the answer."""
    failure: Failure
    run_id: str = ""
    path: list[str] = Field(default_factory=list[str])


Waiting = Approval | Question | Parked
"""What a person can do something about."""

NodeState = Literal["running", "done", "failed", "skipped", "cancelled"]


class NodeStatus(Value):
    """One run of a node: of a graph's node, of a swarm's agent, of an agent called as a tool."""

    key: str
    """Unique in the run: the node's name and the number of the visit, such as "draft-2"."""
    node: str
    kind: Literal["agent", "swarm", "graph", "function"] = "agent"
    state: NodeState = "running"
    run_id: str | None = None
    """The child's workflow id; None for a function."""
    stop_reason: StopReason | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int | None = 0
    error: Failure | None = None


class NodeResult(NodeStatus):
    """What one run of a node gave."""

    output: Any = None


class PlanItem(Value):
    """A line of an agent's plan."""

    text: str
    state: Literal["pending", "in_progress", "done", "dropped"] = "pending"


class RunResult(Value):
    """How a run ended."""

    version: Literal[1] = 1
    agent: str
    output: Any = None
    """Text; with an `output_type`, JSON that fits it (None when the run ended before)."""
    stop_reason: StopReason
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int | None = None
    """Millionths of a dollar; None when the price of a model used is not known."""
    spec_hash: str = ""
    error: Failure | None = None
    nodes: list[NodeResult] = Field(default_factory=list[NodeResult], exclude_if=is_empty)
    """Swarm and graph: every run of a node, in the order in which they ended. Usage and cost above
    count each of them once."""
    shared_context: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict[str, dict[str, JsonValue]], exclude_if=is_empty
    )
    """Swarm: what the agents told each other with their handoffs, by agent."""
    unmet: dict[str, str] = Field(default_factory=dict[str, str], exclude_if=is_empty)
    """Graph: nodes that never ran, and why."""
    answered: bool = Field(default=False, exclude_if=is_empty)
    """True: it failed, with `error`, and answered all the same (`on_failure="answer"`)."""
    missing: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Of a run that ended early: what it left undone, a line each."""


class RunStatus(Value):
    """Where a run is."""

    version: Literal[1] = 1
    agent: str
    status: Status
    doing: str
    """In words, for people."""
    step: int = 0
    tool_calls: int = 0
    messages: int = 0
    """Length of the transcript."""
    usage: Usage = Usage()
    cost_microusd: int | None = 0
    waiting: list[Waiting] = Field(default_factory=list[Waiting])
    """Who waits for a person: in this run and in all below it."""
    calls: list[CallStatus] = Field(default_factory=list[CallStatus])
    failure: Failure | None = None
    """Why it is parked, or failed."""
    stop_reason: StopReason | None = None
    spec_hash: str = ""
    model: str = ""
    """The model that answers now."""
    queued: int = 0
    """Messages sent and not yet seen by the model."""
    kind: Literal["agent", "swarm", "graph", "session"] = "agent"
    nodes: list[NodeStatus] = Field(default_factory=list[NodeStatus], exclude_if=is_empty)
    """What the run started, in order of their start. Of a swarm or graph, of many those in flight and the
    newest; of an agent those in flight: what the others gave are its tools' results."""
    turn: int = Field(default=0, exclude_if=is_empty)
    """Session: the turn in hand, or the newest one."""
    plan: list[PlanItem] = Field(default_factory=list[PlanItem], exclude_if=is_empty)
    shared_context: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict[str, dict[str, JsonValue]], exclude_if=is_empty
    )


class TurnReply(Value):
    """What a message to a session came to: how its turn ended. All numbers are of that turn."""

    version: Literal[1] = 1
    message_id: str = ""
    done: bool = True
    """False: the message is kept and its turn is not over; ask again, with the same message id."""
    known: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False, of the query only: no message of that id was said, or it is long forgotten."""
    turn: int = 0
    """Turns are counted from 1; messages that steered a turn have its number."""
    output: Any = None
    text: str = ""
    """The newest words of the agent in this turn."""
    stop_reason: StopReason | None = None
    error: Failure | None = None
    """Why the turn failed. The session goes on all the same."""
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int | None = None
    messages: int = 0
    """Length of the session's transcript when the turn was over."""


class TranscriptPage(Value):
    """Messages from `start` on, at most about 400 KB of them; `length` is the whole transcript's."""

    start: int
    length: int
    messages: list[Message]
