"""What tools gave before: an old answer in place of none, for tools that say that it will do."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from perdure.messages import ResultPart, Text
from perdure.model import digest
from perdure.tools import Tool
from perdure.wire.effects import ToolInput

from .results import Kept

_MOST: Final = 1000
"""Answers that a worker remembers, the newest."""


@dataclass(frozen=True)
class Earlier:
    """An answer, and how long ago it was given."""

    kept: Kept
    seconds: float

    def told(self, tool: str, failure: Kept) -> Kept:
        """The answer, and the model is told that it is an old one."""
        why = "".join(part.text for part in failure.content if isinstance(part, Text))
        note = f"({tool!r} failed: {why}\nThis is what the same call gave {self.seconds:.0f} s ago.)\n"
        content: list[ResultPart] = [Text(text=note), *self.kept.content]
        return replace(self.kept, content=content, stand_in="remembered")


@dataclass
class Remembered:
    """The newest answers of this process, by agent, tool, arguments, user and context."""

    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _known: "OrderedDict[str, tuple[float, Kept]]" = field(
        default_factory=OrderedDict[str, tuple[float, Kept]], repr=False
    )

    def keep(self, tool: Tool, want: ToolInput, kept: Kept) -> None:
        """Remember an answer, if the tool wants it."""
        if tool.fallback is None or tool.fallback.remembered is None:
            return
        key = _key(want)
        self._known[key] = (self.clock(), kept)
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def find(self, tool: Tool, want: ToolInput) -> Earlier | None:
        """What the same call gave, if that is not too long ago."""
        longest = tool.fallback.remembered if tool.fallback else None
        if longest is None:
            return None
        found = self._known.get(_key(want))
        if found is None:
            return None
        seconds = self.clock() - found[0]
        return Earlier(found[1], seconds) if seconds <= longest.total_seconds() else None


def _key(want: ToolInput) -> str:
    """Two people never share an answer, nor two tenants that the context tells apart."""
    return digest([want.agent, want.tool, want.arguments, want.user, want.context])
