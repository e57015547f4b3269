"""Results of MCP tools as values of ours: texts, images and documents, and words for what a model cannot read."""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlparse

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from perdure.media import problem_with_bytes
from perdure.media_types import sniff_media_type
from perdure.messages import Document, Image, Text

from ..content.results import text_of

_Part = Text | Image | Document
_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_PDF: Final = "application/pdf"


def to_parts(result: CallToolResult) -> list[_Part]:
    """Return the result as parts, in their order."""
    parts = [_to_part(block) for block in result.content]
    structured = result.structured_content
    if structured is not None and not _is_stated(structured, parts):
        parts.append(Text(text=text_of(structured)))
    return parts


def error_text(result: CallToolResult) -> str:
    """Return the words of a result that is an error."""
    words = [part.text if isinstance(part, Text) else f"(with the {part.kind})" for part in to_parts(result)]
    return "\n".join(words) or "the tool failed and gave no reason"


def _to_part(block: ContentBlock) -> _Part:
    match block:
        case TextContent():
            return Text(text=block.text)
        case ImageContent():
            return _media(block.data, block.mime_type, "image")
        case AudioContent():
            return _in_words("audio", block.mime_type, _size(block.data))
        case ResourceLink():
            about = [block.name, block.uri, block.mime_type, block.description]
            return Text(text=f"(resource: {', '.join(str(each) for each in about if each)})")
        case EmbeddedResource(resource=TextResourceContents() as resource):
            return Text(text=f"{resource.uri}:\n{resource.text}")
        case EmbeddedResource(resource=BlobResourceContents() as resource):
            return _media(resource.blob, resource.mime_type or "", _last_name(str(resource.uri)))
        case _:
            return Text(text="(the server gave a part of a kind that is not known here)")


def _media(data: str, media_type: str, name: str) -> _Part:
    """Return an image or a PDF by its bytes, whatever the server says of them; anything else in words."""
    try:
        raw = base64.b64decode(data, validate=True)
    except binascii.Error:
        return Text(text=f"({name}, of type {media_type!r}, cannot be shown: it is not base64)")
    kind = sniff_media_type(raw)
    part: Image | Document
    if kind in _IMAGES:
        part = Image(media_type=kind, data=data)
    elif kind == _PDF:
        part = Document(media_type=_PDF, name=name, data=data)
    else:
        return _in_words(name, media_type, len(raw))
    problem = problem_with_bytes(part, raw)
    if problem is not None:
        return Text(text=f"({name}, of type {media_type!r}, cannot be shown: {problem})")
    return part


def _in_words(name: str, media_type: str, size: int) -> Text:
    return Text(text=f"({name}, of type {media_type!r} and {size:,} bytes, which cannot be shown to you)")


def _size(data: str) -> int:
    return len(data) * 3 // 4


def _last_name(uri: str) -> str:
    parsed = urlparse(uri)
    return parsed.path.rstrip("/").rpartition("/")[2] or parsed.netloc or "resource"


def _is_stated(structured: Any, parts: Iterable[_Part]) -> bool:
    """Check whether the texts say already what the structured content holds.

    The protocol asks servers to repeat it as JSON in a text. Many wrap a text, as `{"content": text}`. Python's SDK
    wraps each value that is no object, as `{"result": value}`, and gives a list's items as texts.
    """
    texts = [part.text for part in parts if isinstance(part, Text)]
    if any(_says(text, structured) for text in texts):
        return True
    if not isinstance(structured, dict) or len(structured) != 1:  # pyright: ignore[reportUnknownArgumentType]
        return False
    value: Any = next(iter(structured.values()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if len(texts) == 1 and _says(texts[0], value):
        return True
    return isinstance(value, list) and len(value) == len(texts) and all(map(_says, texts, _items(value)))  # pyright: ignore[reportUnknownArgumentType]


def _items(value: Any) -> Iterator[Any]:
    return iter(value)


def _says(text: str, value: Any) -> bool:
    if text in (value, str(value)):
        return True
    try:
        return bool(json.loads(text) == value)
    except (ValueError, RecursionError):
        return False
