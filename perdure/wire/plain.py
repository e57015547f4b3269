"""Values from outside, checked to survive every way that they may go: JSON that each end can write and read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic_core import from_json, to_json

MOST_NESTING: Final = 100
"""Deepest nesting of a value from outside. A run nests it deeper when it carries or passes it on, and our JSON
reader gives up at 200: a value that just got in could otherwise never be read again."""


@dataclass(frozen=True, kw_only=True)
class Undecodable:
    """Argument of a workflow whose payload could not be decoded."""

    reason: str


def problem_as_json(value: Any) -> str | None:
    """Return why the value cannot be written as JSON and read again, and where it is not a number; None if it can."""
    if _is_deeper(value, MOST_NESTING):
        return f"it is nested deeper than {MOST_NESTING} levels"
    for place, number in _numbers(value):
        if not math.isfinite(number):
            return f"{place or 'it'} is {number}, and JSON has no such number"
    try:
        # As payloads are written and read. Python's text may hold half of a surrogate pair, and a number may be too
        # long to be read again.
        from_json(to_json(value, inf_nan_mode="constants"), allow_inf_nan=False)
    except ValueError as error:
        return f"it cannot be written as JSON and read again: {error}"
    return None


def _is_deeper(value: Any, most: int) -> bool:
    # Level by level, not by recursion: the value may be deeper than Python's stack.
    level = [value]
    for _ in range(most + 1):
        level = [inner for outer in level for _, inner in _inside(outer)]
        if not level:
            return False
    return True


def _numbers(value: Any) -> Iterable[tuple[str, float]]:
    """Yield each float in the value, with its place."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        place, node = stack.pop()
        if isinstance(node, float):
            yield place, node
        stack.extend((f"{place}.{key}".lstrip("."), inner) for key, inner in _inside(node))


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    match value:
        case dict():
            return cast("dict[str, Any]", value).items()
        case list() | tuple():
            return enumerate(cast("list[Any]", value))
        case _:
            return ()
