"""What comes from outside when it is not what anybody expects."""

from collections.abc import Iterator
from copy import copy
from typing import Any

from hypothesis import strategies as st

HALF = "half \ud800 character"
ODD_TEXTS = [
    "",
    " ",
    "\0",
    HALF,
    "\ud83d",
    "x" * 5000,
    "../../etc/passwd",
    "NaN",
    "٣",
    "%s{}",
    "\r\n",
    "\u202e",
]
ODD_NUMBERS = [0, -1, 2**31, 2**63, -(2**63), 10**400, 0.1, -0.0, 1e308, float("inf"), float("nan")]

texts = st.text(max_size=12) | st.sampled_from(ODD_TEXTS)
leaves: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from([*ODD_NUMBERS])
)
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Anything that Python's JSON reader could give, and a little more."""


def deep(depth: int, inner: Any = None) -> Any:
    """Nested so deep. What is deeper than 200, no converter of ours reads."""
    value = inner
    for level in range(depth):
        value = [value] if level % 2 else {"c": value}
    return value


nested = st.builds(deep, st.sampled_from([50, 150, 190]))
anything = values | values | values | nested


def mutated(value: Any, pick: int, new: Any) -> Any:
    """The value with one of its parts, at any depth, replaced or taken away."""
    places = list(_places(value, ()))
    path = places[pick % len(places)]
    return _replaced(value, path, new)


GONE = "(gone)"


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, one in _inside(value):
        yield from _places(one, (*path, key))


def _inside(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, str) or not hasattr(value, "__getitem__"):
        return []
    keys = value if hasattr(value, "keys") else range(len(value))
    return [(key, value[key]) for key in keys]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    made: Any = copy(value)
    if not rest and new == GONE:
        del made[key]
    else:
        made[key] = _replaced(made[key], tuple(rest), new)
    return made


news = st.sampled_from(ODD_TEXTS) | st.sampled_from(ODD_NUMBERS) | st.just(GONE) | anything
