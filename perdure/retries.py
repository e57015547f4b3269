"""Retries of tool calls, as an agent states them and as its spec keeps them."""

from dataclasses import dataclass
from datetime import timedelta

from perdure.definitions import Definition, check_types
from perdure.errors import DefinitionError


@dataclass(frozen=True, kw_only=True)
class ToolRetry(Definition):
    """Retries of a failed tool call; each delay is `backoff` times the one before."""

    attempts: int = 3
    """Attempts that may fail, the first included. One whose worker died or was stopped is counted apart, except that
    a write with a single attempt is never repeated."""
    initial_interval: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    maximum_interval: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        check_types(self, "ToolRetry")
        if self.attempts < 1:
            raise DefinitionError(f"ToolRetry: attempts must be 1 or more, not {self.attempts!r}")
        # Temporal takes no smaller coefficient.
        if self.backoff < 1:
            raise DefinitionError(f"ToolRetry: backoff must be 1 or more, not {self.backoff!r}")
        if self.initial_interval <= timedelta():
            raise DefinitionError(
                f"ToolRetry: initial_interval must be positive, not {self.initial_interval!r}"
            )
        if self.maximum_interval < self.initial_interval:
            raise DefinitionError(
                f"ToolRetry: maximum_interval {self.maximum_interval!r} is less than "
                f"initial_interval {self.initial_interval!r}; raise it"
            )
