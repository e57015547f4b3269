"""Pattern: a team of your own, whose scheduler chooses which member runs next.

A pattern is two small files or one: a class that inherits from `Pattern` (its vocabulary), and a `Scheduler`.
Everything else comes with the engine: durability, limits, people, sessions, drawings and watching.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar, Literal, Protocol

from pydantic import JsonValue, TypeAdapter, ValidationError

from perdure.definitions import explain
from perdure.errors import DefinitionError
from perdure.limits import PatternLimits
from perdure.members import Member, collect_members, unknown_tool_limit
from perdure.prices import PriceTable
from perdure.scheduling import Notes, Over, Scheduler, Start, progress_adapter
from perdure.wire.spec import PatternSpec

__all__ = [
    "Notes",
    "Over",
    "Pattern",
    "PatternLimits",
    "PatternSpec",
    "Scheduler",
    "Start",
    "by_name",
    "scheduler_factories",
]

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,63}")
_SETTINGS = TypeAdapter(dict[str, JsonValue])


class SchedulerFactory(Protocol):
    """Maker of a pattern's scheduler, such as the scheduler's class."""

    def __call__(self, spec: PatternSpec, /) -> Scheduler[Any]:
        """Return the scheduler of a run with this spec."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pattern(ABC):
    """A pattern. Inherit from it with a frozen dataclass that adds your own fields.

    Making one raises DefinitionError for everything that could not run. A `__post_init__` of your own must call
    that of this class.
    """

    member_kind: ClassVar[Literal["pattern"]] = "pattern"

    pattern: ClassVar[str]
    """Kind of the pattern, such as "debate". It finds the scheduler of a run, so it must stay the same over deploys."""
    scheduler: ClassVar[SchedulerFactory]
    """Scheduler of a run, made from its pinned spec: a class that takes the spec, or a function."""

    name: str
    description: str = ""
    """Purpose of the pattern, for agents that call it."""
    limits: PatternLimits = field(default_factory=PatternLimits)

    @property
    @abstractmethod
    def members(self) -> Mapping[str, Member]:
        """Agents, swarms, graphs and patterns that it runs, by name. See `by_name`."""

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """Everything else that its scheduler reads, as JSON: a run pins it with its spec."""
        return {}

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(
                f"pattern name {self.name!r}: use letters, digits, '_', '-' and '.', starting with a letter"
            )
        kind = getattr(self, "pattern", None)
        if not isinstance(kind, str) or not _NAME.fullmatch(kind):
            raise self.wrong(f'set {type(self).__name__}.pattern to the name of its kind, such as "debate"')
        if not callable(getattr(type(self), "scheduler", None)):
            raise self.wrong(f"set {type(self).__name__}.scheduler to the class of its scheduler")
        if not isinstance(self.limits, PatternLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self.wrong(f"limits must be PatternLimits, not {self.limits!r}")
        unknown = unknown_tool_limit(self.limits, self.members.values())
        if unknown is not None:
            raise self.wrong(f"limits.per_tool names {unknown!r}, which is not a tool of its agents")
        if not self.members:
            raise self.wrong("it has no members; add at least one")
        collect_members(self)
        self._check_scheduler()

    def _check_scheduler(self) -> None:
        """Make the scheduler once, so that its errors appear where the pattern is defined, and not in a run."""
        made = type(self).scheduler(self.spec())
        try:
            progress_adapter(made.progress_type)
        except Exception as error:
            raise self.wrong(
                f"its progress_type {made.progress_type!r} cannot be kept as JSON: {error}"
            ) from error

    def wrong(self, why: str) -> DefinitionError:
        """Return an error in the definition, for checks of your own."""
        return DefinitionError(f"{self.pattern} {self.name!r}: {why}")

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> PatternSpec:
        """Return the pattern as data; its hash covers its members by their hashes.

        Raises:
            DefinitionError: the settings are no JSON, or the cost is bounded and the price of a model is not known.

        """
        # One budget bounds all members, so each of them needs its prices.
        limited = cost_limited or self.limits.cost_usd is not None
        specs = [m.spec(prices=prices, today=today, cost_limited=limited) for m in self.members.values()]
        try:
            settings = _SETTINGS.validate_python(dict(self.settings))
        except ValidationError as error:
            raise self.wrong(f"its settings are no JSON: {explain(error)}") from None
        return PatternSpec(
            name=self.name,
            description=self.description,
            pattern=self.pattern,
            members={spec.name: spec.kind for spec in specs},
            settings=settings,
            limits=self.limits,
            member_hashes=tuple(spec.hash for spec in specs),
        )


def by_name(members: Iterable[Member]) -> dict[str, Member]:
    """Return the members by name, in order.

    Raises:
        DefinitionError: two have the same name.

    """
    found: dict[str, Member] = {}
    for member in members:
        if member.name in found:
            raise DefinitionError(f"two members are called {member.name!r}; rename one, or list it once")
        found[member.name] = member
    return found


def scheduler_factories(members: Iterable[Member]) -> dict[str, SchedulerFactory]:
    """Return the schedulers of the patterns among these members, by kind.

    Raises:
        DefinitionError: two schedulers have the same kind.

    """
    found: dict[str, SchedulerFactory] = {}
    for member in members:
        if not isinstance(member, Pattern):
            continue
        factory = type(member).scheduler
        if found.setdefault(member.pattern, factory) is not factory:
            raise member.wrong(f"another class of patterns is called {member.pattern!r} too; rename one")
    return found
