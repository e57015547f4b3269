"""Types of images and documents, by their first bytes. Pure.

The first bytes of a file decide its type, and not what somebody has written beside it.
"""

import re
from typing import Final

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_RIFF: Final = re.compile(rb"RIFF....WEBP", re.DOTALL)
KNOWN_MEDIA_TYPES: Final = frozenset({"image/webp", *(kind for _, kind in _MAGIC)})
"""Types that their first bytes prove."""
_PDF_START: Final = 1024
"""Bytes within which a PDF begins: readers accept something before it."""


def sniff_media_type(data: bytes) -> str | None:
    """Return the type that the bytes prove, or None if they prove none."""
    if _RIFF.match(data):
        return "image/webp"
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    return found or ("application/pdf" if b"%PDF-" in data[:_PDF_START] else None)
