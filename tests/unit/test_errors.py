"""The errors that the package raises are those that its documentation draws."""

import re
from collections.abc import Iterator

from perdure import errors


def _drawn() -> Iterator[tuple[str, int]]:
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ |]*)\+-- (\w+)", line)
        if match:
            yield match[2], len(match[1]) // 4 + 1


def _defined(base: type[Exception], depth: int = 1) -> Iterator[tuple[str, int]]:
    for error in base.__subclasses__():
        if error.__module__ == errors.__name__:
            yield error.__name__, depth
            yield from _defined(error, depth + 1)


def test_error_tree_matches_its_drawing() -> None:
    assert list(_drawn()) == list(_defined(errors.PerdureError))
