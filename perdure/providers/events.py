"""Pieces of an answer: server-sent events, a JSON object a line, or one whole JSON body.

Servers are asked for a stream, and some answer with the whole body all the same, or name another content type than
that of what they send. So the first bytes decide, and not the header.

Written here because the libraries' readers take only what they expect, and lose the rest without a word.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final, cast

Piece = dict[str, Any]

_MOST_SHOWN: Final = 300
"""Characters of an answer that is no stream, in the error about it."""
_BOM: Final = b"\xef\xbb\xbf"


class NoStream(ValueError):
    """The answer has content, but neither events nor JSON."""


async def read_pieces(chunks: AsyncIterable[bytes]) -> AsyncIterator[Piece]:
    """Yield the JSON objects of an answer, in order.

    The name of a server-sent event becomes the object's `type`, where it has none.

    Raises:
        ValueError: the answer, or a part of it, cannot be read.

    """
    reader = _Reader()
    async for line in _lines(chunks):
        for piece in reader.read(line):
            yield piece
    for piece in reader.finish():
        yield piece


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines, without their ends.

    Only the ends of the standard count: a text may hold other characters that Python takes for line breaks.
    """
    rest = b""
    first = True
    async for chunk in chunks:
        rest += chunk
        if first and len(rest) >= len(_BOM):
            rest, first = rest.removeprefix(_BOM), False
        if b"\n" not in chunk and b"\r" not in chunk:
            continue
        # The newest byte may be the first half of a line's end.
        held = b"\r" if rest.endswith(b"\r") else b""
        *lines, rest = rest.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest += held
        for line in lines:
            yield line
    if rest:
        for line in rest.removeprefix(_BOM).replace(b"\r", b"\n").split(b"\n"):
            yield line


class _Reader:
    """Reader of lines, in the form that the first of them has."""

    def __init__(self) -> None:
        self._form = ""
        """"events", "json", or empty before the first line with content."""
        self._name = ""
        self._data: list[bytes] = []
        self._body: list[bytes] = []
        """Lines of a JSON body that is no object a line."""
        self._other: list[bytes] = []
        """Lines that mean nothing, for the error about them."""
        self._has_events = False

    def read(self, line: bytes) -> list[Piece]:
        """Return the pieces that the line completes."""
        if not self._form and line.strip():
            self._form = "json" if line.lstrip()[:1] in (b"{", b"[") else "events"
        if self._form == "json":
            return self._read_json(line)
        return self._read_event(line)

    def finish(self) -> list[Piece]:
        """Return the pieces that the end completes."""
        if self._body:
            return _objects(json.loads(b"\n".join(self._body)))
        pieces = self._dispatch()
        words = b" ".join(self._other).decode(errors="replace").split()
        if words and not self._has_events:
            raise NoStream(f"no stream, but {' '.join(words)[:_MOST_SHOWN]!r}")
        return pieces

    def _read_json(self, line: bytes) -> list[Piece]:
        if self._body:
            self._body.append(line)
            return []
        if not line.strip():
            return []
        try:
            return _objects(json.loads(line))
        except ValueError:
            # The first line of an object that is written over many, or broken: the end tells.
            self._body.append(line)
            return []

    def _read_event(self, line: bytes) -> list[Piece]:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name.strip():
            case b"data":
                self._has_events = True
                return self._read_data(value)
            case b"event":
                self._has_events = True
                self._name = value.decode(errors="replace").strip()
            case b"" | b"id" | b"retry":
                self._has_events = True  # also a comment: servers keep the connection alive by it
            case _:
                if not self._has_events and sum(map(len, self._other)) < 4 * _MOST_SHOWN:
                    self._other.append(line)
        return []

    def _read_data(self, value: bytes) -> list[Piece]:
        if self._data:
            # A second event without the blank line that ends the first: both are whole.
            pieces = self._dispatch_if_whole()
            self._data.append(value)
            return pieces
        self._data.append(value)
        return []

    def _dispatch_if_whole(self) -> list[Piece]:
        try:
            json.loads(b"\n".join(self._data))
        except ValueError:
            return []
        name, pieces = self._name, self._dispatch()
        self._name = name
        return pieces

    def _dispatch(self) -> list[Piece]:
        """Return the object of the event that ends here."""
        data, name = b"\n".join(self._data).strip(), self._name
        self._data, self._name = [], ""
        # The customary mark behind the last event is no JSON.
        if not data or data.startswith(b"[DONE]"):
            return []
        try:
            value: object = json.loads(data)
        except ValueError:
            if name != "error":
                raise
            value = data.decode(errors="replace")
        if name == "error" and not (isinstance(value, dict) and "error" in cast("dict[str, Any]", value)):
            return [{"type": "error", "error": value}]
        pieces = _objects(value)  # pyright: ignore[reportUnknownArgumentType]
        return [{"type": name, **piece} for piece in pieces] if name else pieces


def _objects(value: object) -> list[Piece]:
    """Return the objects in a JSON value: itself, or the elements of a list."""
    if isinstance(value, dict):
        return [cast("Piece", value)]
    if isinstance(value, list):
        return [piece for item in cast("list[object]", value) for piece in _objects(item)]
    raise ValueError(f"a piece of the answer is no JSON object but {str(value)[:_MOST_SHOWN]!r}")
