"""Events: everything that can happen to a run. `fold` makes the next state of them."""

from dataclasses import dataclass
from datetime import datetime

from perdure.hooks import HookPoint
from perdure.limits import Limits
from perdure.messages import Message, ToolResult
from perdure.scheduling import Start
from perdure.wire.effects import HookOutcome, ModelFailure, ModelOutcome
from perdure.wire.requests import ApprovalDecision, WhenBusy
from perdure.wire.results import RunResult, StopReason
from perdure.wire.spec import AgentSpec, AnySpec
from perdure.wire.tree import Amount, BudgetRequest, Grant, Report

from .past import NextAgent, TurnExtension
from .people import RelayedAnswer, RelayedDecision
from .state import End, Utterance


@dataclass(frozen=True, kw_only=True)
class StepBegan:
    """A model call was started."""

    clamped_by: StopReason | None = None


@dataclass(frozen=True, kw_only=True)
class Replied:
    """The model answered."""

    outcome: ModelOutcome
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ModelFailed:
    """The model call failed: its retries are used up, or would not help."""

    failure: ModelFailure
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class CallsStarted:
    """Tool calls were started."""

    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CallReturned:
    """A tool call returned a result, or an error for the model."""

    result: ToolResult
    arguments: dict[str, object] | None = None
    """Arguments that a hook has set."""
    ask: str | None = None
    """Reason for which a hook wants a person to decide: the tool was not called."""
    end_turn: str | None = None
    """Answer with which a hook ends the turn."""


@dataclass(frozen=True, kw_only=True)
class HooksStarted:
    """Hooks are being asked by an activity of their own."""

    point: HookPoint
    ids: tuple[str, ...] = ()
    """Calls that they are asked about."""
    end: End | None = None
    """End that they are asked about."""


@dataclass(frozen=True, kw_only=True)
class HooksAnswered:
    """Hooks answered."""

    point: HookPoint
    outcome: HookOutcome


@dataclass(frozen=True, kw_only=True)
class HooksFailed:
    """Hooks gave no verdict: what they guard does not go on."""

    point: HookPoint
    message: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class MessageSent:
    """A person or program sent a message. Two messages with one id are the same message."""

    message: Message
    id: str | None = None
    call_id: str | None = None
    """The run's own question that it answers."""


@dataclass(frozen=True, kw_only=True)
class ApprovalResolved:
    """A person decided about an approval."""

    decision: ApprovalDecision
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ApprovalRelayed:
    """A run below took a decision that a person made here."""

    decision: RelayedDecision


@dataclass(frozen=True, kw_only=True)
class AnswerRelayed:
    """A run below took the answer to its question that a person gave here."""

    answer: RelayedAnswer


@dataclass(frozen=True, kw_only=True)
class PeopleAwaited:
    """From this time on the run, with all runs below it, waits for people alone."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class PeopleAnswered:
    """The run goes on, or waits for something else too."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class Paused:
    """A person paused the run: nothing new is started."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A person resumed the run, from a pause or from being parked."""


@dataclass(frozen=True, kw_only=True)
class ModelSwitched:
    """Another model of the chain is in use, because the money left does not pay for the present one."""

    model: int


@dataclass(frozen=True, kw_only=True)
class RetryDue:
    """The retry timer of a parked run fired."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class Redriven:
    """A person lets a parked run go on, with another agent's spec or other limits."""

    spec: AgentSpec | None = None
    members: tuple[AnySpec, ...] = ()
    limits: Limits | None = None


@dataclass(frozen=True, kw_only=True)
class EndRequested:
    """The end was requested from outside: a stop, a cancellation, or the deadline."""

    reason: StopReason


@dataclass(frozen=True, kw_only=True)
class GraceExpired:
    """Cancelled work did not answer in time; the run goes on without it."""


@dataclass(frozen=True, kw_only=True)
class WindowMoved:
    """The model's window now starts at this message."""

    start: int


@dataclass(frozen=True, kw_only=True)
class SummaryBegan:
    """A model is asked to summarize the messages before `stop`."""

    stop: int


@dataclass(frozen=True, kw_only=True)
class Summarized:
    """The summary was written; or, with `failure` set, it was not."""

    outcome: ModelOutcome | None = None
    failure: ModelFailure | None = None


@dataclass(frozen=True, kw_only=True)
class ChildEnded:
    """A child run ended. `result` is for the model, when a tool call had started the child."""

    key: str
    outcome: RunResult
    at: datetime
    result: ToolResult | None = None


@dataclass(frozen=True, kw_only=True)
class NodesStarted:
    """Nodes of a team were started."""

    starts: tuple[Start, ...]
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ChildReported:
    """A child reported who waits below it, or what it needs."""

    report: Report


@dataclass(frozen=True, kw_only=True)
class ChildGranted:
    """A child's budget request was answered."""

    key: str
    grant: Grant


@dataclass(frozen=True, kw_only=True)
class BudgetRequested:
    """The lender was asked for more."""

    request: BudgetRequest


@dataclass(frozen=True, kw_only=True)
class BudgetGranted:
    """The lender answered."""

    grant: Grant


@dataclass(frozen=True, kw_only=True)
class ParentInformed:
    """A report went to the parent: who waits for people, and the amount that is given back meanwhile."""

    waiting: tuple[str, ...]
    returned: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class TurnExtended:
    """The last turn of a session, which a limit has ended, is to go on."""

    extension: TurnExtension


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """A session is to take another version of its agent."""

    agent: NextAgent


@dataclass(frozen=True, kw_only=True)
class Said:
    """A person said something to the session.

    `delivered` is True when a run below has the message already: then it only belongs to the turn of that number.
    """

    utterance: Utterance
    when_busy: WhenBusy = "queue"
    delivered: bool = False
    turn: int = 0
    call_id: str | None = None
    """The run's own question that it answers."""


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
class TurnInterrupted:
    """The turn is to end, but not the session: a person asked for it, or the turn's time is over."""

    turn: int | None = None
    """Number of the turn that is meant; None: the present one."""
    reason: StopReason = "stopped"


@dataclass(frozen=True, kw_only=True)
class IdleChecked:
    """The idle timer fired."""

    at: datetime


# Groups by who folds them: `session`, `family`, and for the rest the program.
SessionEvent = Said | TurnBegan | TurnEnded | TurnInterrupted | IdleChecked | Upgraded | TurnExtended
TreeEvent = (
    ChildReported
    | ChildGranted
    | BudgetRequested
    | BudgetGranted
    | ParentInformed
    | ApprovalRelayed
    | AnswerRelayed
    | PeopleAwaited
    | PeopleAnswered
)
# The order has no meaning. A new event needs a case in the agent's `fold`; mypy finds it by `assert_never`, as it does
# for a `TreeEvent` in `family`. The folds of `team` and `session` end in `case _`: mypy does not check them.
# Events are not stored: after a continue-as-new only the state goes on, so their fields may change freely.
# History holds the activity results and messages that they are made of.
Event = (
    StepBegan
    | Replied
    | ModelFailed
    | CallsStarted
    | CallReturned
    | HooksStarted
    | HooksAnswered
    | HooksFailed
    | MessageSent
    | ApprovalResolved
    | Paused
    | Resumed
    | RetryDue
    | Redriven
    | EndRequested
    | GraceExpired
    | WindowMoved
    | SummaryBegan
    | Summarized
    | ModelSwitched
    | NodesStarted
    | ChildEnded
    | TreeEvent
    | SessionEvent
)
