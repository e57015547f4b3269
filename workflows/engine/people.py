"""People in a run's state: what they have decided and answered below it, and how long they took. Plain values."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from perdure.messages import ApprovalRecord
from perdure.wire.results import StopReason


@dataclass(frozen=True, kw_only=True)
class RelayedDecision:
    """A decision that went to a run below, kept to answer the same one again."""

    run_id: str
    call_id: str
    record: ApprovalRecord


@dataclass(frozen=True, kw_only=True)
class RelayedAnswer:
    """An answer that went to a question of a run below, kept to recognise the same one when it comes again."""

    run_id: str
    call_id: str
    content: str
    """Digest of its content."""
    message_id: str = ""


@dataclass(frozen=True, kw_only=True)
class PeopleTime:
    """Time in which the run waits for people alone. The rules stand in `clocks`."""

    since: datetime | None = None
    """Beginning of the present wait; None: the run does not wait for people alone."""
    total: timedelta = timedelta()
    """Sum of the waits that are over."""
    until: datetime | None = None
    """End of the last wait."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Deadline that counts no time in which the run waits for people alone."""

    at: datetime
    """Time at which it is due if nobody is waited for."""
    reason: StopReason
    before: timedelta = timedelta()
    """Waits for people that were over when the clock began."""
