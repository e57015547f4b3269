"""Estimates of tokens: never below what a provider counts, for everything that a model reads or writes.

Budgets reserve by these numbers, so each is an upper bound. Theory of operation:

1. Text is judged in windows of 256 characters, by the kinds of its characters. Prose in Latin letters takes
   about a token for three letters. Digits, hex, base64 and other text without words take up to one a character.
2. Other scripts take as many tokens a character as the worst of the recorded tokenizers needs for them. A
   character of no common script counts as its bytes: a byte-level tokenizer never makes more.
3. A picture counts by its size, a PDF by its pages and by the text that they show, other documents by their text.
   What cannot be read counts by its bytes, or as the largest that providers take.

`tests/unit/test_tokens.py` holds the bound against recorded counts of five tokenizers, and how far above it is.
"""

import base64
import codecs
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

from perdure.pdf_text import pdf_text

LARGEST_IMAGE: Final = 4_784
"""Tokens of the largest picture: providers scale down what is larger."""
SMALLEST_IMAGE: Final = 300
PAGE_TOKENS: Final = 5_000
"""Tokens of a PDF's page: its text (Anthropic documents up to 3,000) and its picture (1,600)."""
PAGE_PICTURE: Final = 1_600
"""Tokens of the picture of a page."""
LARGEST_DOCUMENT: Final = 100 * PAGE_TOKENS
"""Tokens of a document of which nothing is known: the hundred pages that providers take at least."""

_WINDOW: Final = 256
_VOWELS: Final = b"aeiouAEIOU"
_LOWER: Final = b"abcdefghijklmnopqrstuvwxyz"
_UPPER: Final = _LOWER.upper()
_DIGITS: Final = b"0123456789"
_BREAKS: Final = b"\n\r\t"
_PUNCTUATION: Final = b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

_MARGIN: Final = 115
"""Percent of what the recorded tokenizers count: the newest ones are not public, and count more."""

# Tokens of a hundred characters, of each kind.
_PROSE_LOWER: Final = 34
_PROSE_UPPER: Final = 60
_PROSE_MARK: Final = 88
_DENSE_LETTER: Final = 88
_EXTRA_SPACE: Final = 44
_WHOLE: Final = 100

_LEAST_VOWELS: Final = 0.27
"""Share of vowels in the letters of words, at least; letters by chance have less."""
_MOST_DIGITS: Final = 0.25
"""Share of digits among letters and digits, above which the letters are taken for hex or an id."""

_SCRIPTS: Final[tuple[tuple[int, int, int], ...]] = (
    (0x0384, 0x03CE, 140),  # Greek
    (0x0400, 0x045F, 75),  # Cyrillic
    (0x05D0, 0x064A, 125),  # Hebrew, Arabic
    (0x0900, 0x096F, 150),  # Devanagari
    (0x0E01, 0x0E4E, 200),  # Thai
    (0x3001, 0x30FE, 140),  # Japanese syllables, CJK punctuation
    (0xAC00, 0xD7A3, 165),  # Korean
    (0xFF00, 0xFF60, 150),  # full-width forms
)
"""Ranges of characters and the tokens of a hundred of them. All others count as their bytes in UTF-8."""
_COMMON_HAN: Final = 145
_HAN_SETS: Final = (("gb2312", 0xB0, 0xD7), ("shift_jis", 0x88, 0x97))
"""Character sets, with the lead bytes of their common Chinese characters. A rare one takes as many tokens as bytes."""
for _charset, *_ in _HAN_SETS:
    codecs.lookup(_charset)  # now: a workflow must not load modules later

_LONG_TEXT: Final = 100_000
"""Characters from which on a count is remembered."""
_OTHER: Final = re.compile(r"[^\x00-\x7f]")
_OWN_SPACE: Final = re.compile(r" (?=[0-9\u0900-\U0010ffff])")
"""Space that is no part of the token after it."""


def text_tokens(text: str) -> int:
    """Return an upper bound of the tokens of a text."""
    return _count_tokens(text) if len(text) < _LONG_TEXT else _count_long_text(text)


@lru_cache(maxsize=8)
def _count_long_text(text: str) -> int:
    # A run counts its window before each step: a prompt of megabytes would take a tenth of a second each time.
    return _count_tokens(text)


def _count_tokens(text: str) -> int:
    if not text:
        return 0
    windows = (text[at : at + _WINDOW] for at in range(0, len(text), _WINDOW))
    counted = sum(map(_window_hundredths, windows)) + len(_OWN_SPACE.findall(text)) * _WHOLE
    # No tokenizer makes more of a text than its bytes.
    return min(-(-counted * _MARGIN // _WHOLE**2), len(text.encode(errors="replace"))) + 1


def json_tokens(value: Any) -> int:
    """Return an upper bound of the tokens of a value that is sent as JSON."""
    return text_tokens(json.dumps(value, ensure_ascii=False, default=str))


def tool_prompt_tokens(provider: str) -> int:
    """Return an upper bound of the instructions that a provider adds by itself when tools are offered."""
    # Anthropic documents 313 to 804 tokens, by model. Others are not known to add any.
    return 810 if provider in ("anthropic", "bedrock") else 0


def _window_hundredths(text: str) -> int:
    """Return the tokens of a window, in hundredths."""
    foreign = 0 if text.isascii() else _other_hundredths(_OTHER.findall(text))
    data = text.encode("ascii", "ignore")
    lower, upper, digits = (_count(data, kind) for kind in (_LOWER, _UPPER, _DIGITS))
    marks, breaks, spaces = _count(data, _PUNCTUATION), _count(data, _BREAKS), data.count(b" ")
    control = len(data) - lower - upper - digits - marks - breaks - spaces
    words = len(data.split())
    if digits > lower + upper:
        shown = (lower + upper + marks) * _WHOLE
    elif _is_prose(data, lower + upper, digits):
        shown = lower * _PROSE_LOWER + upper * _PROSE_UPPER + marks * _PROSE_MARK
    else:
        shown = (lower + upper) * _DENSE_LETTER + marks * _WHOLE
    # A word is a token at least, and most words take the space before them into it.
    shown = max(shown + digits * _WHOLE, words * _WHOLE)
    blank = max(spaces - words, 0) * _EXTRA_SPACE
    return shown + blank + (breaks + control) * _WHOLE + foreign


def _count(data: bytes, kind: bytes) -> int:
    return len(data) - len(data.translate(None, kind))


def _is_prose(data: bytes, letters: int, digits: int) -> bool:
    is_worded = _count(data, _VOWELS) >= _LEAST_VOWELS * letters
    return is_worded and digits <= _MOST_DIGITS * (letters + digits)


def _other_hundredths(characters: Iterable[str]) -> int:
    return sum(map(_character_hundredths, characters))


@lru_cache(maxsize=8192)
def _character_hundredths(character: str) -> int:
    code = ord(character)
    if 0x4E00 <= code <= 0x9FFF:
        return _COMMON_HAN if _is_common_han(character) else 3 * _WHOLE
    known = next((each for first, last, each in _SCRIPTS if first <= code <= last), None)
    return len(character.encode(errors="replace")) * _WHOLE if known is None else known


def _is_common_han(character: str) -> bool:
    return any(first <= character.encode(charset, "replace")[0] <= last for charset, first, last in _HAN_SETS)


# -- pictures


def image_tokens(data: bytes) -> int:
    """Return an upper bound of the tokens of a picture, by its size in pixels."""
    size = image_size(data)
    if size is None:
        return LARGEST_IMAGE
    width, height = size
    # Anthropic counts patches of 28 pixels; some models of OpenAI count patches of 32 up to two and a half times.
    patches = -(-width // 28) * -(-height // 28)
    return min(max(2 * patches, SMALLEST_IMAGE), LARGEST_IMAGE)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG, GIF, JPEG or WebP, or None."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return struct.unpack(">II", data[16:24])
        if data[:4] == b"GIF8":
            return struct.unpack("<HH", data[6:10])
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (struct.error, IndexError):
        return None
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        # A frame's header, but for three markers of that range that are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0xFF:
            at += 1
        elif 0xD0 <= marker <= 0xD9 or marker == 0x01:
            at += 2
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


# -- documents

_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PAGE_COUNT: Final = re.compile(rb"/Count\s+(\d{1,6})")
_OBJECTS: Final = re.compile(rb"/Type\s*/ObjStm.*?stream\r?\n", re.DOTALL)
_MOST_INFLATED: Final = 16 * 1024 * 1024
_MOST_PAGES: Final = 10_000
_MOST_READ: Final = 1024 * 1024
"""Bytes of a PDF's text that are judged by their characters."""


def document_tokens(data: bytes, media_type: str) -> int:
    """Return an upper bound of the tokens of a document: by its pages, by its text, else by its bytes."""
    if data[:1024].lstrip().startswith(b"%PDF") or media_type == "application/pdf":
        return _pdf_tokens(data)
    if data[:4] == b"PK\x03\x04":
        return _archive_tokens(data)
    try:
        return text_tokens(data.decode())
    except UnicodeDecodeError:
        return len(data)


def _pdf_tokens(data: bytes) -> int:
    """Return a bound for a PDF: a page may hold more text than pages do, and in few bytes."""
    pages = _pdf_pages(data)
    if not pages:
        return max(len(data), PAGE_TOKENS)
    text = pdf_text(data)
    letters = text.shown.replace(b"\x00", b"")  # fonts with two bytes a letter
    # No tokenizer makes more of a text than its bytes; more than a long book is not worth a closer look.
    shown = text_tokens(letters[:_MOST_READ].decode("latin-1")) + len(letters[_MOST_READ:])
    if len(letters) < len(text.shown):
        shown = max(shown, len(letters) * 3 // 2)
    return max(pages * PAGE_TOKENS, pages * PAGE_PICTURE + shown + text.unread)


def _pdf_pages(data: bytes) -> int:
    """Return the largest number of pages that any part of the file tells, or 0."""
    found = 0
    for part in (data, *_inflated_objects(data)):
        counts = [int(count) for count in _PAGE_COUNT.findall(part)]
        found = max(found, len(_PAGE.findall(part)), *(n for n in counts if n <= _MOST_PAGES), 0)
    return found


def _inflated_objects(data: bytes) -> Iterator[bytes]:
    """Yield the object streams of the file, inflated: newer files keep their pages there."""
    room = _MOST_INFLATED
    for match in _OBJECTS.finditer(data):
        try:
            part = zlib.decompressobj().decompress(data[match.end() :], room)
        except zlib.error:
            continue
        room -= len(part)
        yield part
        if room <= 0:
            return


def _archive_tokens(data: bytes) -> int:
    """Return a bound for the documents that are archives of XML, such as those of office programs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError):
        return len(data)
    text = sum(file.file_size for file in files if file.filename.endswith(".xml"))
    pictures = sum("/media/" in file.filename for file in files)
    return max(text // 2, PAGE_TOKENS) + pictures * LARGEST_IMAGE


def media_tokens(kind: str, media_type: str, data: bytes) -> int:
    """Return an upper bound of the tokens of an image or a document."""
    return image_tokens(data) if kind == "image" else document_tokens(data, media_type)


def encoded_media_tokens(kind: str, media_type: str, data: str) -> int:
    """Return `media_tokens` of base64 text; what is no base64 counts as the largest of its kind."""
    try:
        return media_tokens(kind, media_type, base64.b64decode(data))
    except ValueError:
        return LARGEST_IMAGE if kind == "image" else LARGEST_DOCUMENT
