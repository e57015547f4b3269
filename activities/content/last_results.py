"""Last results of tools: what a failing tool may be replaced by, where its `ToolFallback` allows that."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cachetools import LRUCache

from perdure.messages import ResultPart, Text
from perdure.model import digest
from perdure.wire.effects import ToolInput

from .results import ResultContent

_CAPACITY: Final = 1000
"""Results that a worker keeps."""


@dataclass(frozen=True)
class LastResult:
    """Result of an earlier call with the same arguments, and its age."""

    content: ResultContent
    age_seconds: float

    def stand_in_for(self, tool: str, failure: ResultContent) -> ResultContent:
        """Return this result as the stand-in for the failed call, with a note on its age for the model."""
        why = "".join(part.text for part in failure.parts if isinstance(part, Text))
        note = f"({tool!r} failed: {why}\nThis is what the same call gave {self.age_seconds:.0f} s ago.)\n"
        parts: list[ResultPart] = [Text(text=note), *self.content.parts]
        return replace(self.content, parts=parts, stand_in="remembered")


@dataclass
class LastResults:
    """Last results of this process, by agent, tool, arguments, user and context; in memory only."""

    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _results: "LRUCache[str, tuple[float, ResultContent]]" = field(
        default_factory=lambda: LRUCache(_CAPACITY), repr=False
    )

    def add(self, call: ToolInput, content: ResultContent) -> None:
        """Keep the result, if the tool's fallback uses last results."""
        if call.remembered is None:
            return
        self._results[_key(call)] = (self.clock(), content)

    def find(self, call: ToolInput) -> LastResult | None:
        """Return the last result of the same call, or None if there is none that is young enough."""
        if call.remembered is None:
            return None
        found = self._results.get(_key(call))
        if found is None:
            return None
        began, content = found
        age_seconds = self.clock() - began
        return LastResult(content, age_seconds) if age_seconds <= call.remembered.total_seconds() else None


def _key(call: ToolInput) -> str:
    # With user and context: two people never share a result, nor two tenants that the context tells apart.
    return digest([call.agent, call.tool, call.arguments, call.user, call.context])
