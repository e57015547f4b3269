"""Images and documents: their real types, and what no provider could read. Pure.

The first bytes of a file decide its type, and not what somebody has written beside it. An attachment that no provider
could read is refused where it enters. One that a provider does not read is shown to the model in words.
"""

import base64
import binascii
import re
from typing import Final

from perdure.messages import Document, Image

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_RIFF: Final = re.compile(rb"RIFF....WEBP", re.DOTALL)
_KNOWN: Final = frozenset({"image/webp", *(kind for _, kind in _MAGIC)})
"""Types that their first bytes prove."""
_PDF_START: Final = 1024
"""Bytes within which a PDF begins: readers accept something before it."""
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


def sniff_media_type(data: bytes) -> str | None:
    """Return the type that the bytes prove, or None if they prove none."""
    if _RIFF.match(data):
        return "image/webp"
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    return found or ("application/pdf" if b"%PDF-" in data[:_PDF_START] else None)


def decode(part: Image | Document) -> bytes:
    """Return the bytes of an attachment whose data is inline.

    Raises:
        ValueError: the data is empty, or no base64.

    """
    try:
        data = base64.b64decode(part.data or "", validate=True)
    except binascii.Error as error:
        raise ValueError(f"its data is not base64: {error}") from None
    if not data:
        raise ValueError("its data is empty")
    return data


def problem_with_bytes(part: Image | Document, data: bytes) -> str | None:
    """Return why no provider could read these bytes as the attachment, or None."""
    real = sniff_media_type(data)
    if real is None and part.media_type in _KNOWN:
        return f"its bytes are not {part.media_type}"
    if isinstance(part, Image) and real == "application/pdf":
        return "it is a PDF: send it as a Document"
    if _is_cut(data, real):
        return f"its bytes end before the {real} does: it was cut"
    return None


def _is_cut(data: bytes, kind: str | None) -> bool:
    match kind:
        case "image/png":
            return b"IEND" not in data[-64:]
        case "image/jpeg":
            return b"\xff\xd9" not in data
        case "image/webp":
            return len(data) < int.from_bytes(data[4:8], "little") + 8
        case "application/pdf":
            return b"%%EOF" not in data
        case _:
            return False


def problem_with_attachment(part: Image | Document) -> str | None:
    """Return why an attachment can be read by no provider, as far as can be said without I/O, or None."""
    problem = None
    if part.blob is not None:
        if not _BLOB_NAME.fullmatch(part.blob):
            problem = f"{part.blob!r} is not the name of a blob"
    elif part.data is None:
        problem = "it has neither data nor a blob"
    else:
        try:
            problem = problem_with_bytes(part, decode(part))
        except ValueError as error:
            problem = str(error)
    return problem and f"{_name(part)} cannot be read: {problem}"


def _name(part: Image | Document) -> str:
    name = part.name if isinstance(part, Document) else part.media_type
    return f"the {part.kind} {name!r}"


def in_words(part: Image | Document, why: str) -> str:
    """Return the words that a model reads in place of an attachment."""
    return f"(here is the {part.kind} of type {part.media_type!r}, which cannot be shown to you: {why})"
