"""Text of a PDF, as far as its tokens need it: what the pages show, inflated with bounded effort.

No parser: a bound needs neither order nor layout. All streams count in which text is shown, whatever they are said to
be and whether a page uses them.
"""

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MOST_INFLATED: Final = 16 * 1024 * 1024
"""Bytes that are inflated of one file. What is behind them counts by its bytes."""
_PEEK: Final = 64 * 1024
_CHUNK: Final = 64 * 1024
_LONGEST_DICT: Final = 4096

_STREAM: Final = re.compile(rb"stream\r?\n")
_IMAGE: Final = re.compile(rb"/Subtype\s*/Image\b")
_IMAGE_FILTER: Final = re.compile(rb"/(?:DCT|JPX|CCITTFax|JBIG2)Decode\b")
_FORM: Final = re.compile(rb"/Subtype\s*/Form\b")
_SHOWS: Final = re.compile(rb"[)>]\s*Tj|\]\s*TJ|[)>]\s*['\"]\s")
_BEGINS_TEXT: Final = re.compile(rb"(?:^|[\s\])>])BT[\s/\[(<]")
_LITERAL: Final = re.compile(rb"\(((?:[^()\\]++|\\.|\((?:[^()\\]++|\\.)*+\))*+)\)", re.DOTALL)
_HEX: Final = re.compile(rb"(?<!<)<([0-9A-Fa-f\s]++)>")
_PLACES: Final = re.compile(rb"/[^\s/]+\s+Do\b")


@dataclass
class PdfText:
    """Text that a PDF shows."""

    shown: bytes = b""
    """Bytes of the strings of its pages, and of forms as often as one may be placed."""
    unread: int = 0
    """Bytes of streams that may show text, and that could not be read."""


def pdf_text(data: bytes) -> PdfText:
    """Return the text that a PDF may show."""
    found, forms, places = PdfText(), [b""], 0
    pieces: list[bytes] = []
    room = MOST_INFLATED
    is_encrypted = b"/Encrypt" in data
    for about, start, end in _streams(data):
        is_image = bool(_IMAGE.search(about))
        most = 0 if is_encrypted else min(room, _PEEK) if is_image else room
        content = _content(data, about, start, end, most)
        if content is not None and is_image and _BEGINS_TEXT.search(content):
            content = _content(data, about, start, end, room)
        if content is None:
            found.unread += 0 if is_image or _IMAGE_FILTER.search(about) else end - start
            continue
        room -= len(content)
        if room <= 0:
            found.unread += end - start
        places += len(_PLACES.findall(content))
        if _shows_text(content):
            (forms if _FORM.search(about) else pieces).append(_strings(content))
    # A form is drawn as often as it is placed. Which one is placed where, no bound needs to know.
    longest = max(forms, key=len)
    times = min(places, MOST_INFLATED // max(len(longest), 1))
    found.shown = b"".join([*pieces, *forms, longest * times])
    return found


def _streams(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield what is said about each stream, its start and its end."""
    at = 0
    while (match := _STREAM.search(data, at)) is not None:
        end = data.find(b"endstream", match.end())
        end = len(data) if end < 0 else end
        head = data[max(match.start() - _LONGEST_DICT, at) : match.start()]
        yield head[head.rfind(b" obj") + 1 :], match.end(), end
        at = max(end + len(b"endstream"), match.end())


def _content(data: bytes, about: bytes, start: int, end: int, room: int) -> bytes | None:
    """Return what is in the stream, up to so many bytes, or None where it cannot be read."""
    if room <= 0:
        return None
    # By what is there: a filter can be named in many ways.
    inflated = _inflate(data, start, room)
    if inflated is not None or b"/Filter" not in about:
        return inflated or data[start : min(end, start + room)]
    for decode in (_from_base85, _from_hex):
        decoded = decode(data[start:end])
        inflated = _inflate(decoded, 0, room)
        if inflated is not None or _shows_text(decoded):
            return inflated or decoded
    return None


def _from_base85(data: bytes) -> bytes:
    try:
        return base64.a85decode(data.strip().removeprefix(b"<~").removesuffix(b"~>"))
    except ValueError:
        return b""


def _from_hex(data: bytes) -> bytes:
    try:
        return bytes.fromhex(_even(data.partition(b">")[0]))
    except ValueError:
        return b""


def _inflate(data: bytes, start: int, room: int) -> bytes | None:
    """Return the inflated bytes, as far as they go: a stream ends by itself, whatever its file says."""
    inflater, parts = zlib.decompressobj(), list[bytes]()
    try:
        while room > 0 and start < len(data) and not inflater.eof:
            piece = inflater.unconsumed_tail or data[start : start + _CHUNK]
            start += 0 if inflater.unconsumed_tail else _CHUNK
            part = inflater.decompress(piece, room)
            room -= len(part)
            parts.append(part)
    except zlib.error:
        pass
    return b"".join(parts) or None


def _shows_text(content: bytes) -> bool:
    return bool(_SHOWS.search(content) and _BEGINS_TEXT.search(content))


def _strings(content: bytes) -> bytes:
    """Return the bytes of all strings in a page's content."""
    literals = b"".join(_LITERAL.findall(content))
    rest = _LITERAL.sub(b"", content)
    encoded = b"".join(bytes.fromhex(_even(text)) for text in _HEX.findall(rest))
    # Parentheses that nest deeper: all that is left counts.
    return literals + encoded + (rest if rest.count(b"(") > rest.count(b"BT") else b"")


def _even(digits: bytes) -> str:
    text = b"".join(digits.split()).decode("latin-1")
    return text + "0" * (len(text) % 2)
