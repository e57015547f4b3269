"""Images and documents that no provider could read. Pure.

An attachment that no provider
could read is refused where it enters. One that a provider does not read is shown to the model in words.
"""

import base64
import binascii
import re
from typing import Final

from perdure.media_types import KNOWN_MEDIA_TYPES, sniff_media_type
from perdure.messages import Document, Image

_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


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
    if real is None and part.media_type in KNOWN_MEDIA_TYPES:
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
