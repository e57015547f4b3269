"""Texts that a person decides by: nothing in them is hidden, and what is cut says so. Pure.

A model or a third party may have written them. Characters without a visible form of their own could change their
order, or hide a part of them. They are written as JSON escapes instead.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

# Printable by Unicode's categories, yet blank or without width in most fonts.
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SHORTEST_VALUE: Final = 8
"""Characters of a value that are worth showing when it is cut."""
_MOST_ARGUMENTS: Final = 50
"""Arguments that are shown in a text of bounded length."""


def visible(text: str, *, lines: bool = False) -> str:
    """Return the text with each character made visible that has no form of its own, by its JSON escape.

    These are bidirectional and other format characters, characters of zero width, control characters, line ends
    unless `lines` is set, unusual spaces, and code points that mean nothing.
    """
    if text.isprintable() and _BLANK.search(text) is None:
        return text
    return "".join(char if _is_visible(char, lines=lines) else _escape(char) for char in text)


def _is_visible(char: str, *, lines: bool) -> bool:
    return (char.isprintable() and _BLANK.match(char) is None) or (lines and char == "\n")


def _escape(char: str) -> str:
    return json.dumps(char)[1:-1]


def call_text(name: str, arguments: Mapping[str, Any], most: int | None = None) -> str:
    """Return a call as `search(query="...")`, with every argument as JSON whose characters are all visible.

    Within `most` characters, if it is given: then values are cut, and the text says by how much.
    """
    pairs = [(_name_text(key), visible(_json(value))) for key, value in arguments.items()]
    text = f"{visible(name)}({', '.join(f'{key}={value}' for key, value in pairs)})"
    if most is None or len(text) <= most:
        return text
    return _cut_call(visible(name), pairs, most)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _name_text(name: str) -> str:
    """Return the name of an argument; in quotes if it could be taken for more than a name."""
    return name if name.isidentifier() and name.isprintable() else visible(_json(name))


def _cut_call(name: str, pairs: list[tuple[str, str]], most: int) -> str:
    for count in range(min(len(pairs), _MOST_ARGUMENTS), 0, -1):
        rest = len(pairs) - count
        tail = f", and {rest:,} more arguments" if rest else ""
        frame = len(name) + 2 + len(tail) + sum(len(key) + 3 for key, _ in pairs[:count])
        share = (most - frame) // count
        if share >= _SHORTEST_VALUE + len(_cut_mark(10**6)):
            values = [f"{key}={cut(value, share)}" for key, value in pairs[:count]]
            return f"{name}({', '.join(values)}{tail})"
    size = sum(len(key) + len(value) for key, value in pairs)
    return f"{cut(name, most // 2)}({len(pairs):,} arguments of {size:,} characters)"


def cut(text: str, most: int) -> str:
    """Return the text within `most` characters; a cut one says how much is missing."""
    if len(text) <= most:
        return text
    kept = max(most - len(_cut_mark(len(text))), 0)
    return f"{text[:kept]}{_cut_mark(len(text) - kept)}"


def _cut_mark(missing: int) -> str:
    return f"…(+{missing:,} characters)"
