"""Tool results: any Python value as content for the model, with large texts and media in the blob store."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter

from perdure.blobs import BlobStore
from perdure.messages import Document, Image, ResultPart, Text
from perdure.texts import first_bytes, fix_surrogates, mark_cut, next_piece, read_on_call
from perdure.tokens import media_tokens
from perdure.wire.effects import ToolInput

from ..function_errors import log_function_error
from .redact import mask_own, redact_error

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_INLINE_MEDIA_BYTES = 8 * 1024
"""Base64 length up to which an image or document stays in the transcript itself."""


@dataclass(frozen=True, kw_only=True)
class ResultContent:
    """Content of a tool result, for the transcript."""

    parts: list[ResultPart]
    spilled: str | None = None
    """Blob of the complete text, if the text was cut."""
    stand_in: str | None = None
    """Substitute that answered for a failed tool: see `ToolResult.stand_in`."""
    may_have_effect: bool = False
    """True for the error of a write that may have had its effect."""


async def to_content(value: Any, blobs: BlobStore, preview_bytes: int) -> ResultContent:
    """Return the value as content: its text cut to `preview_bytes`, its media in the blob store.

    Never raises: the tool has run, and must not run again because its result cannot be written or
    stored. The content says so instead.
    """
    parts = _to_parts_safely(value)
    media = [part for part in parts if not isinstance(part, Text)]
    # Masked before it is cut or stored.
    text = mask_own(fix_surrogates("\n".join(part.text for part in parts if isinstance(part, Text))))
    content: list[ResultPart] = []
    spilled = None
    # A model needs an answer to each call: a tool without a value answers "done".
    if text or not media:
        shown, spilled = await _cut(text or "done", blobs, preview_bytes)
        content.append(Text(text=shown))
    content.extend([await _store_media(part, blobs) for part in media])
    return ResultContent(parts=content, spilled=spilled)


def _to_parts_safely(value: Any) -> list[ResultPart]:
    try:
        return _to_parts(value)
    except Exception as error:
        log_function_error(error, f"the JSON of a tool's result, a {type(value).__name__},")
        why = redact_error(error, 500)
        return [
            Text(text=f"(done, but the result, a {type(value).__name__}, cannot be written as JSON: {why})")
        ]


def _to_parts(value: Any) -> list[ResultPart]:
    if isinstance(value, Text | Image | Document):
        return [value]
    if isinstance(value, list | tuple) and any(isinstance(v, Text | Image | Document) for v in value):  # pyright: ignore[reportUnknownVariableType]
        items = cast("Sequence[Any]", value)
        return [part for item in items for part in _to_parts(item)]
    return [Text(text=text_of(value))]


def text_of(value: Any) -> str:
    """Return the value as text: a string as it is, None as an empty text, anything else as JSON."""
    if isinstance(value, str):
        return fix_surrogates(value)
    return "" if value is None else _ANY.dump_json(value).decode()


async def _cut(text: str, blobs: BlobStore, most: int) -> tuple[str, str | None]:
    """Return the text cut to `most` bytes, and the blob that holds all of it; None if it was not cut."""
    data = text.encode()
    if len(data) <= most:
        return text, None
    shown = first_bytes(data, most)
    try:
        name = await blobs.put(data)
    except Exception as error:
        return mark_cut(shown, len(data), f"the rest could not be kept: {redact_error(error, 500)}"), None
    return mark_cut(shown, len(data), f"read on with {read_on_call(name, len(shown.encode()))}"), name


async def _store_media(part: Image | Document, blobs: BlobStore) -> ResultPart:
    if part.data is None or len(part.data) <= _INLINE_MEDIA_BYTES:
        return part
    try:
        data = base64.b64decode(part.data)
        name = await blobs.put(data)
    except Exception as error:
        return Text(text=f"(the {part.kind} could not be kept: {redact_error(error, 500)})")
    # Counted here, where the bytes are: the run sees only their name.
    tokens = media_tokens(part.kind, part.media_type, data)
    return part.model_copy(update={"data": None, "blob": name, "tokens": tokens})


async def read_more(blobs: BlobStore, call: ToolInput) -> ResultContent:
    """Return the next piece of a cut result, from the byte offset that the model names."""
    name, offset = str(call.arguments["result"]), int(call.arguments.get("offset", 0))
    try:
        data = await blobs.get(name)
    except (KeyError, ValueError):
        return ResultContent(parts=[Text(text=f"there is no result {name!r}")])
    return ResultContent(parts=[Text(text=next_piece(data, offset, call.preview_bytes))])
