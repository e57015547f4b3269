"""What a run knows: one frozen value, and the events that change it.

Theory of operation
1. `decide(state)` says what to do next; it never does it. `fold(state, event)` is the only way the
   state changes. Both are pure, total and free of clocks: time arrives inside events.
2. A step is one model call and the tool calls it asked for. Either the model is being asked or the
   step's calls are open, never both.
3. Messages only grow at their end; a tool message is written once, when every call of its step has
   a result. So the transcript is well-formed whenever a model is asked.
4. What ends a run is written into `end` by `fold`; `decide` then only reports it.
5. Everything needed to go on is in the state: continue-as-new carries it and nothing else.
6. Usage, cost and tool calls are the run's own and those of its children that have ended: each is
   counted once, when the child ends, and so reaches the root.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from perdure.limits import Limits
from perdure.messages import Message, ToolCall, ToolResult, Usage
from perdure.wire.effects import ModelFailure, ModelOutcome
from perdure.wire.requests import ApprovalDecision, RunRequest, WhenBusy
from perdure.wire.results import Failure, PlanItem, RunResult, StopReason, TurnReply
from perdure.wire.spec import AgentSpec, AnySpec, ToolKind
from perdure.wire.tree import Amount, Grant, Handoff, Peer, Report

from .scheduler import Start
from .tree import Tree

CallState = Literal["unpaid", "ready", "asking", "running", "done"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call of the step in hand. "asking": held for a person; "unpaid": until the parent of the
    run has let it make more calls.
    """

    call: ToolCall
    kind: ToolKind
    state: CallState
    since: datetime
    result: ToolResult | None = None
    edited: bool = False
    """True when a person changed the arguments."""
    stand_in: str | None = None
    """The tool that is called in its place, after it has failed."""
    failed: str = ""
    """What it said when it failed."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How the run ends. With `failure` set it ends as failed, unless it answers all the same."""

    stop_reason: StopReason
    output: object = None
    failure: Failure | None = None
    answers: bool = False
    """In spite of the failure it ends as completed."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A message to a session, and the id by which its sender knows it."""

    id: str
    message: Message


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The counters of a session when its turn began: the turn's own are what came after."""

    at: datetime
    messages: int = 0
    step: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()
    cost_microusd: int = 0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A turn that is over. `at` is the message its words are in, when they are too long to keep twice."""

    ids: tuple[str, ...]
    reply: TurnReply
    at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a session knows beside the run in it. Its rules are in `turns`."""

    turn_limits: Limits
    limits: Limits
    """Of the whole session."""
    max_idle: timedelta | None
    deadline_at: datetime | None
    mark: Mark
    turn: int = 0
    is_open: bool = False
    """A turn goes on."""
    ids: tuple[str, ...] = ()
    """The messages that the turn answers."""
    unread: tuple[Spoken, ...] = ()
    """Messages that steer the turn, once the model reads them."""
    queue: tuple[Spoken, ...] = ()
    answered: tuple[Answered, ...] = ()
    said: int = 0
    """Messages said without an id of their own."""
    closing: StopReason | None = None
    """The session is to end, when the turn is over."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything a run knows. See the rules above."""

    request: RunRequest
    spec: AgentSpec
    limits: Limits
    started_at: datetime
    id: str = ""
    """The run's workflow id: its children's ids begin with it."""
    members: tuple[AnySpec, ...] = ()
    """Specs of all whom it may start, directly or through others."""
    tree: Tree = Tree()  # noqa: RUF009 - a frozen value
    deadline_at: datetime | None = None
    messages: tuple[Message, ...] = ()

    step: int = 0
    asking_model: bool = False
    redo: bool = False
    """The step's model call did not come about: the next one is the same step."""
    model: int = 0
    """Index of the model in use; moves along the fallback chain."""
    settled: int = 0
    """Index of the model that the next step begins with."""
    tried: tuple[str, ...] = ()
    """Models of this step that failed, and why."""
    stale: int = 0
    clamped_by: StopReason | None = None
    """The budget that made the present call's max_tokens smaller than configured."""

    calls: tuple[Call, ...] = ()
    tool_calls: int = 0
    per_tool: dict[str, int] = field(default_factory=dict[str, int])
    strikes: int = 0
    """Steps in a row of which no call could be carried out."""
    repairs: int = 0
    wrap_up: StopReason | None = None
    """A limit is reached: one last call, without tools, then this is the reason."""

    usage: Usage = Usage()
    cost_microusd: int = 0
    cost_unknown: bool = False
    context_tokens: int = 0
    """What the next model call will read, by the provider's last count and our estimate since."""

    window_start: int = 0
    shrinks: int = 0
    """Times in a row the provider said that the context overflows."""
    spilled: bool = False

    plan: tuple[PlanItem, ...] = ()
    planned_at: int = 0
    """Index of the message with the newest plan: once it has slid out of sight, the model is reminded."""
    handoff: Handoff | None = None
    """To whom the step in hand hands over, once all its calls have their results."""
    resting: bool = False
    """The model has ended its turn while children run: their answers wake it."""

    inbox: tuple[Message, ...] = ()
    heard: tuple[str, ...] = ()
    """Ids of the newest messages: Temporal forgets them when a run continues as new."""
    paused: bool = False
    parked: Failure | None = None
    naps: int = 0
    """Times in a row it was parked and tried again by itself."""
    outage: Failure | None = None
    """Why it was parked first, until a model answers: between two naps nothing is better yet."""
    force_once: bool = False
    """A person has told it to go on, and no model has answered yet, nor was it parked again."""
    relimited: Limits | None = None
    """Bounds that a person has set since, in place of its own."""
    ending: StopReason | None = None
    """Asked to end from outside; what is in flight is being called back."""
    end: End | None = None
    session: Session | None = None

    @property
    def first(self) -> int:
        """Index of the message with which the run, or the turn in hand, began."""
        return self.session.mark.messages if self.session else 0

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        running = any(call.state == "running" for call in self.calls)
        return self.asking_model or running or bool(self.tree.children)

    @property
    def running(self) -> bool:
        """Whether a tool call of its own is under way."""
        return any(call.state == "running" and call.kind != "agent" for call in self.calls)

    @property
    def peers(self) -> list[Peer]:
        """Whom it may hand off to."""
        return self.tree.branch.peers if self.tree.branch else []

    @property
    def pinned(self) -> int:
        """How many leading messages the window keeps: the task, once the window has moved."""
        return 1 if self.window_start > 0 else 0


@dataclass(frozen=True, kw_only=True)
class StepBegan:
    """The model is being asked."""

    clamped_by: StopReason | None = None


@dataclass(frozen=True, kw_only=True)
class Replied:
    """The model answered."""

    outcome: ModelOutcome
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ModelFailed:
    """The model call failed for good (its retries are used up, or would not help)."""

    failure: ModelFailure
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class CallsStarted:
    """These tool calls are under way."""

    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CallReturned:
    """A tool call has its result, an error for the model included."""

    result: ToolResult


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A person or program said something. What comes twice under one id was said once."""

    message: Message
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A person decided about an approval."""

    decision: ApprovalDecision


@dataclass(frozen=True, kw_only=True)
class Paused:
    """Start nothing new."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Go on, from a pause or from being parked."""


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Another model of the chain is in use, because the money left does not pay for this one."""

    model: int


@dataclass(frozen=True, kw_only=True)
class NapOver:
    """A parked run tries again by itself."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class Redriven:
    """A person lets a parked run go on, with another agent's spec or other limits."""

    spec: AgentSpec | None = None
    members: tuple[AnySpec, ...] = ()
    limits: Limits | None = None


@dataclass(frozen=True, kw_only=True)
class EndAsked:
    """End from outside: stopped, cancelled, or the deadline."""

    reason: StopReason


@dataclass(frozen=True, kw_only=True)
class GraceOver:
    """What was called back did not answer in time; it is given up."""


@dataclass(frozen=True, kw_only=True)
class Slid:
    """The model's window now starts at this message."""

    start: int


@dataclass(frozen=True, kw_only=True)
class ChildEnded:
    """A run that this one started has ended, well or not. `result` is for the model, if a call asked."""

    key: str
    outcome: RunResult
    at: datetime
    result: ToolResult | None = None


@dataclass(frozen=True, kw_only=True)
class NodesStarted:
    """These nodes of a swarm or graph are under way."""

    starts: tuple[Start, ...]
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ChildReported:
    """A child says where it is, or needs more."""

    report: Report


@dataclass(frozen=True, kw_only=True)
class ChildAnswered:
    """A child was told what it gets."""

    key: str
    grant: Grant


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The parent was asked for more."""

    need: Amount
    wish: Amount


@dataclass(frozen=True, kw_only=True)
class Granted:
    """The parent answered."""

    grant: Grant


@dataclass(frozen=True, kw_only=True)
class Told:
    """The parent was told who waits for people, and given back what is not needed meanwhile."""

    waiting: tuple[str, ...]
    returned: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class Spoke:
    """Somebody said something to the session."""

    spoken: Spoken
    when_busy: WhenBusy = "queue"


@dataclass(frozen=True, kw_only=True)
class TurnBegan:
    """The next message has its turn."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class TurnEnded:
    """The turn is over, in the way in which a run would have ended."""

    end: End
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """End the turn, not the session: somebody asked for it, or its time is over."""

    turn: int | None = None
    """Only if it is this one."""
    reason: StopReason = "stopped"


@dataclass(frozen=True, kw_only=True)
class IdleNoticed:
    """Time has passed: perhaps nobody says anything any more."""

    at: datetime


SessionEvent = Spoke | TurnBegan | TurnEnded | Interrupted | IdleNoticed
Event = (
    StepBegan
    | Replied
    | ModelFailed
    | CallsStarted
    | CallReturned
    | Sent
    | Decided
    | Paused
    | Resumed
    | NapOver
    | Redriven
    | EndAsked
    | GraceOver
    | Slid
    | Switched
    | NodesStarted
    | ChildEnded
    | ChildReported
    | ChildAnswered
    | Asked
    | Granted
    | Told
    | SessionEvent
)
