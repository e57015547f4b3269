"""Tools as a server lists them, and the digest by which a later call knows them again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from perdure.mcp import McpToolInfo
from perdure.model import digest
from perdure.texts import fix_surrogates

from ..content.redact import mask_value, redact_and_cut

_DIGEST_CHARS: Final = 32
"""Length of a tool's digest: 128 bits, for a server might look for a second tool of the same digest."""
_LONGEST_DESCRIPTION: Final = 10_000
"""Characters of a description that a model gets. A server could fill the context of every step."""
_HINTS: Final[Mapping[str, bool]] = {
    "readOnlyHint": False,
    "destructiveHint": True,
    "idempotentHint": False,
    "openWorldHint": True,
}
"""Annotations of tools, with what counts where a server says nothing: the more dangerous of the two."""
_NAMES: Final[Mapping[str, str]] = {
    "readOnlyHint": "read_only",
    "destructiveHint": "destructive",
    "idempotentHint": "idempotent",
    "openWorldHint": "open_world",
}


@dataclass(frozen=True, kw_only=True)
class ListedTool:
    """Tool of a server, as it was listed."""

    name: str
    title: str = ""
    text: str = field(default="", repr=False)
    """Description by the server, as it came."""
    input_schema: dict[str, Any] = field(repr=False)
    output_schema: Any = field(default=None, repr=False)
    annotations: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @cached_property
    def digest(self) -> str:
        """Digest of all that the server says of the tool; a changed hint changes it too."""
        stated = [self.name, self.title, self.text, self.input_schema, self.output_schema, self.annotations]
        return digest(stated)[:_DIGEST_CHARS]

    @property
    def description(self) -> str:
        """Description for the model and for history: without secrets, and in bounded length."""
        text = fix_surrogates(self.text).strip() or fix_surrogates(self.title).strip()
        return redact_and_cut(text, _LONGEST_DESCRIPTION) or f"(the server does not describe {self.name!r})"

    @property
    def schema(self) -> dict[str, Any]:
        """Input schema for the model and for history: without secrets, and without the name of its dialect."""
        kept = {key: value for key, value in self.input_schema.items() if key != "$schema"}
        masked: dict[str, Any] = mask_value(kept)
        return masked

    @property
    def info(self) -> McpToolInfo:
        """Description for functions that decide about effect and approval."""
        hints = {_NAMES[hint]: self._hint(hint) for hint in _HINTS}
        return McpToolInfo(name=self.name, description=self.description, **hints)

    @property
    def claims(self) -> tuple[str, ...]:
        """Hints that the server states and that are true, by our names."""
        return tuple(_NAMES[hint] for hint in _HINTS if self.annotations.get(hint) is True)

    def _hint(self, hint: str) -> bool:
        stated = self.annotations.get(hint)
        return stated if isinstance(stated, bool) else _HINTS[hint]
