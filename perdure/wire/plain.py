"""Values from outside, checked to survive every way that they may go: JSON that each end can write and read."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

MOST_NESTING: Final = 100
"""Deepest nesting of a value from outside. A run nests it deeper when it carries or passes it on, and our JSON
reader gives up at 200: a value that just got in could otherwise never be read again."""


@dataclass(frozen=True, kw_only=True)
class Undecodable:
    """Argument of a workflow whose payload could not be decoded."""

    reason: str


def problem_as_json(value: Any) -> str | None:
    """Return why the value, made of JSON types, cannot be written as JSON and read again; None if it can."""
    if _is_deeper(value, MOST_NESTING):
        return f"it is nested deeper than {MOST_NESTING} levels"
    try:
        # Python's text may hold half of a surrogate pair, and its numbers may be infinite: JSON has neither.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        return f"it cannot be written as JSON: {error}"
    return None


def _is_deeper(value: Any, most: int) -> bool:
    # Level by level, not by recursion: the value may be deeper than Python's stack.
    level = [value]
    for _ in range(most + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    match value:
        case dict():
            return cast("dict[str, Any]", value).values()
        case list() | tuple():
            return cast("list[Any]", value)
        case _:
            return ()
