"""Past of a run that was extended, and the extension with which it goes on. The rules stand in `extension`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from perdure.limits import Limits
from perdure.scheduling import Start
from perdure.wire.requests import ExtendTurn
from perdure.wire.results import ExtensionRecord, StopReason, UpgradeRecord
from perdure.wire.spec import AnySpec
from perdure.wire.tree import ChildInput


@dataclass(frozen=True, kw_only=True)
class Past:
    """Extensions of a run, and what must not change by them."""

    extensions: tuple[ExtensionRecord, ...] = ()
    identity: str = ""
    """Identity of the root from its first execution on; empty: the run was never extended."""
    closed_for: timedelta = timedelta()
    """Time for which the run was closed: no clock of the run counts it."""


@dataclass(frozen=True, kw_only=True)
class NextAgent:
    """Version of its agent that a session takes between two turns."""

    spec: AnySpec
    members: tuple[AnySpec, ...] = ()
    record: UpgradeRecord


@dataclass(frozen=True, kw_only=True)
class TurnExtension:
    """Request that the last turn of a session goes on, as JSON can hold it."""

    request: ExtendTurn
    ended: StopReason
    """Limit that had ended the turn."""
    executions: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class UsualTurn:
    """Limits of other turns, and the spec without what was granted to the present one."""

    limits: Limits
    spec: AnySpec


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Nodes of a team that its limit cut short. An extension lets them go on. The rules stand in `cut`."""

    progress: Any = None
    """Memory of the scheduler without the ends of these nodes; None: no node was cut short."""
    nodes: tuple[Start, ...] = ()
    shared: dict[str, StopReason] = field(default_factory=dict[str, StopReason])
    """Limits of the team that have ended nodes, by key, the first end first."""
    again: tuple[Start, ...] = ()
    """Nodes of an extended team that are to be started again."""
    origins: dict[str, str] = field(default_factory=dict[str, str])
    """Closed executions from which nodes go on, by key."""
    results: int = 0
    """Number of the results that the team had before its extension."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """Grant with which a closed run goes on."""

    limits: Limits
    """Granted bounds, of the kind that the run's spec has; those that are set count."""
    record: ExtensionRecord
    closed_at: datetime
    """End of the closed execution."""
    identity: str = ""
    child: ChildInput | None = None
    """Input of a run that its parent lets go on; None for a root."""
    executions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Closed executions of the runs below that go on too, by their workflow ids."""

    @property
    def at(self) -> datetime:
        """Time of the extension."""
        return self.record.at

    @property
    def ended_by(self) -> StopReason:
        """Limit that had ended the run."""
        assert self.record.ended is not None, "the state is rebuilt"
        return self.record.ended
