"""Fallbacks: who answers when a model or a tool has given up."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from perdure.errors import RULES, DefinitionError
from perdure.model import ModelConfig

COST_BUDGET: Final = "cost_budget"
"""In `Fallback.on`: the money left does not pay for a call of the model before it."""
_CONDITIONS: Final = frozenset(
    {*(kind for kind, rule in RULES.items() if rule.place == "model"), COST_BUDGET}
)


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A model of the chain, and when it is taken.

    Raises DefinitionError for a condition that there is not.
    """

    model: str | ModelConfig
    on: Collection[str] | None = None
    """Kinds of errors (`docs/errors.md`), and "cost_budget": the money left does not pay for a call of
    the model before. None: every error that falls back. With "context_overflow" it is taken before the
    conversation is cut: a model with more room."""
    sticky: bool = True
    """True: it answers from here on (providers cache prompts). False: the next step asks the model before it
    again, which costs next to nothing while that one's circuit is open."""
    least_cost_left_usd: float | None = None
    """It is taken only while at least so much of the run's cost budget is left."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.on or ()) - _CONDITIONS)
        if isinstance(self.on, str) or unknown:
            wrong = repr(self.on) if isinstance(self.on, str) else ", ".join(map(repr, unknown))
            known = ", ".join(sorted(_CONDITIONS))
            raise DefinitionError(f"Fallback: on={wrong} is no set of error kinds; there are: {known}")
        if self.on is not None and not self.on:
            raise DefinitionError("Fallback: on is empty, so it would never be taken; leave it out for all")
        if self.least_cost_left_usd is not None and self.least_cost_left_usd < 0:
            raise DefinitionError(
                f"Fallback: least_cost_left_usd must be 0 or more, not {self.least_cost_left_usd!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ToolFallback:
    """What answers when a tool has failed for good: exactly one of the three. The model is told so."""

    tool: str | None = None
    """Another tool of the same agent, by name: called once in its place, with the same arguments."""
    answer: str | None = None
    """This text."""
    remembered: timedelta | None = None
    """What the same call, for the same user, last gave on this worker, if that is not longer ago. For
    tools that read."""

    def __post_init__(self) -> None:
        given = [one for one in (self.tool, self.answer, self.remembered) if one is not None]
        if len(given) != 1:
            raise DefinitionError("ToolFallback: give exactly one of tool, answer and remembered")
        if self.remembered is not None and self.remembered <= timedelta():
            raise DefinitionError(f"ToolFallback: remembered must be positive, not {self.remembered!r}")
