"""Fallbacks: models and stand-ins that answer once the attempts of a model or tool are used up."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from perdure.definitions import Definition, check_types
from perdure.errors import RULES, DefinitionError
from perdure.model import ModelConfig

COST_BUDGET: Final = "cost_budget"
"""Condition of `Fallback.on`: the budget left does not pay for a call of the model before."""
_CONDITIONS: Final = frozenset(
    {*(kind for kind, rule in RULES.items() if rule.place == "model" or rule.falls_back), COST_BUDGET}
)


@dataclass(frozen=True, kw_only=True)
class Fallback(Definition):
    """Model of the chain, with the conditions on which it is taken.

    Making one raises DefinitionError for an unknown condition.
    """

    model: str | ModelConfig
    on: Collection[str] | None = None
    """Kinds of errors (`docs/errors.md`), and "cost_budget": the budget left does not pay for a call of the
    model before. None: every error that falls back. "context_overflow" takes it before the conversation is
    cut, for a model with a larger context."""
    sticky: bool = True
    """True: it answers all later steps, so that the provider's prompt cache stays in use. False: the next
    step tries the model before it again, which costs next to nothing while that circuit is open."""
    least_cost_left_usd: float | None = None
    """Least part of the run's cost budget that must be left for it to be taken."""
    instructions: str | None = None
    """Instructions of this model in place of the agent's, such as simpler ones. None: the agent's."""

    def __post_init__(self) -> None:
        check_types(self, "Fallback")
        unknown = sorted(set(self.on or ()) - _CONDITIONS)
        if isinstance(self.on, str) or unknown:
            wrong = repr(self.on) if isinstance(self.on, str) else ", ".join(map(repr, unknown))
            known = ", ".join(sorted(_CONDITIONS))
            raise DefinitionError(f"Fallback: on={wrong} is not a set of error kinds; use any of: {known}")
        # An empty set reads like "always" to some and like "never" to others.
        if self.on is not None and not self.on:
            raise DefinitionError(
                "Fallback: on is empty, so it would never be taken; leave it out to fall back on every error"
            )
        if self.least_cost_left_usd is not None and self.least_cost_left_usd < 0:
            raise DefinitionError(
                f"Fallback: least_cost_left_usd must be 0 or more, not {self.least_cost_left_usd!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ToolFallback(Definition):
    """Stand-in for a tool whose attempts are used up: exactly one of the three. The model is told which."""

    tool: str | None = None
    """Name of another tool of the agent. It is called once, with the same arguments."""
    answer: str | None = None
    """Text that is the result."""
    remembered: timedelta | None = None
    """Greatest age of a remembered result: what the same call for the same user last gave on this worker.
    Only for tools with the effect `read`."""

    def __post_init__(self) -> None:
        check_types(self, "ToolFallback")
        stand_ins = [value for value in (self.tool, self.answer, self.remembered) if value is not None]
        if len(stand_ins) != 1:
            raise DefinitionError("ToolFallback: give exactly one of tool, answer and remembered")
        if self.remembered is not None and self.remembered <= timedelta():
            raise DefinitionError(f"ToolFallback: remembered must be positive, not {self.remembered!r}")
