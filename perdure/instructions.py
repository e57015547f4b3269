"""Instructions made for a run: what a function of the user's gets. Its text is pinned in the run's spec."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, cast

from perdure.resources import Resources


@dataclass(frozen=True, kw_only=True)
class InstructionsContext(Generic[Resources]):
    """Facts about a run that begins, for `Agent(instructions=function)`."""

    agent: str
    user: str | None = None
    roles: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values from the run's request."""
    resources: Resources = field(default=cast("Any", None), repr=False)
    """Value of the worker's `lifespan`; None without one."""


Instructions = Callable[[Any], str | Awaitable[str]]
"""Function that gives the instructions, sync or async. Its argument is an `InstructionsContext`."""
