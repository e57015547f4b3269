"""Commands: everything that `decide` can ask the loop to do."""

from dataclasses import dataclass

from perdure.hooks import HookPoint
from perdure.model import ToolChoice
from perdure.scheduling import Start
from perdure.wire.reservation import Reservation
from perdure.wire.results import StopReason
from perdure.wire.tree import BudgetRequest, Grant

from .state import Call, End


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Output tokens that the next model call may spend.

    `limited_by` is the budget that made it less than configured.
    """

    max_tokens: int
    limited_by: StopReason | None = None
    reservation: Reservation | None = None
    """What all attempts of the call may spend together; None without a bound."""


@dataclass(frozen=True, kw_only=True)
class CallModel:
    """Ask the model."""

    allowance: Allowance
    tool_choice: ToolChoice = "auto"
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallTools:
    """Start these calls, all at once."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, kw_only=True)
class RunHooks:
    """Ask hooks by an activity of their own: about these calls, or about the run's start or end."""

    point: HookPoint
    calls: tuple[Call, ...] = ()
    end: End | None = None


@dataclass(frozen=True, kw_only=True)
class StartNodes:
    """Start these nodes of a team, all at once."""

    starts: tuple[Start, ...]
    more: bool = False
    """True when more are startable: all at once they would pass what one workflow task may carry."""


@dataclass(frozen=True, kw_only=True)
class GrantChildren:
    """Answer the budget requests of these children."""

    grants: tuple[tuple[str, Grant], ...]


@dataclass(frozen=True, kw_only=True)
class RequestBudget:
    """Ask the lender for more."""

    request: BudgetRequest


@dataclass(frozen=True, kw_only=True)
class MoveWindow:
    """Move the model's window, so that what it sees fits."""

    start: int


@dataclass(frozen=True, kw_only=True)
class Summarize:
    """Let a model summarize the messages before `stop`, then move the window there."""

    stop: int
    allowance: Allowance


@dataclass(frozen=True, kw_only=True)
class SwitchModel:
    """Go on with a model that the money left pays for."""

    model: int


@dataclass(frozen=True, kw_only=True)
class CancelPending:
    """Cancel everything that is pending: the run is to end."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Wait until something happens."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """End the run."""

    end: End


@dataclass(frozen=True, kw_only=True)
class OpenTurn:
    """Begin the turn of a session's next message."""


@dataclass(frozen=True, kw_only=True)
class CloseTurn:
    """End the turn of a session."""

    end: End


# A new command needs a case in `Loop._carry_out`; mypy finds the place by `assert_never`. It does not check
# `with_hooks`, `Renewal.may_renew` and the session's `decide`, which pass on commands that they do not name.
Command = (
    CallModel
    | CallTools
    | RunHooks
    | StartNodes
    | GrantChildren
    | RequestBudget
    | MoveWindow
    | Summarize
    | SwitchModel
    | CancelPending
    | Wait
    | Finish
    | OpenTurn
    | CloseTurn
)
