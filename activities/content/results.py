"""Tool results: any Python value becomes content for the model; what is too big is kept aside."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter

from perdure.blobs import BlobStore
from perdure.messages import Document, Image, ResultPart, Text
from perdure.texts import first_bytes, fix_surrogates, mark_cut, truncate_middle
from perdure.wire.effects import ToolInput

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_INLINE_MEDIA_BYTES = 8 * 1024


@dataclass(frozen=True, kw_only=True)
class ResultContent:
    """Content for the transcript; `spilled` names the whole text when it was cut."""

    parts: list[ResultPart]
    spilled: str | None = None
    stand_in: str | None = None


async def to_content(value: Any, blobs: BlobStore, preview_bytes: int) -> ResultContent:
    """The value as content, its text cut to `preview_bytes`, its media in the blob store.

    Never an error: the tool has done its work, and must not be made to do it again because its
    result cannot be written or kept. The content says so instead.
    """
    parts = _readable(value)
    media = [part for part in parts if not isinstance(part, Text)]
    text = fix_surrogates("\n".join(part.text for part in parts if isinstance(part, Text)))
    content: list[ResultPart] = []
    spilled = None
    if text or not media:
        shown, spilled = await _cut(text or "done", blobs, preview_bytes)
        content.append(Text(text=shown))
    content.extend([await _stored(part, blobs) for part in media])
    return ResultContent(parts=content, spilled=spilled)


def _readable(value: Any) -> list[ResultPart]:
    try:
        return _parts(value)
    except Exception as error:
        why = truncate_middle(fix_surrogates(str(error)), 500)
        return [
            Text(text=f"(done, but the result, a {type(value).__name__}, cannot be written as JSON: {why})")
        ]


def _parts(value: Any) -> list[ResultPart]:
    if isinstance(value, Text | Image | Document):
        return [value]
    if isinstance(value, list | tuple) and any(isinstance(v, Text | Image | Document) for v in value):  # pyright: ignore[reportUnknownVariableType]
        items = cast("Sequence[Any]", value)
        return [part for item in items for part in _parts(item)]
    return [Text(text=text_of(value))]


def text_of(value: Any) -> str:
    """A string as it is, nothing as nothing, anything else as JSON."""
    if isinstance(value, str):
        return fix_surrogates(value)
    return "" if value is None else _ANY.dump_json(value).decode()


async def _cut(text: str, blobs: BlobStore, most: int) -> tuple[str, str | None]:
    data = text.encode()
    if len(data) <= most:
        return text, None
    shown = first_bytes(data, most)
    try:
        name = await blobs.put(data)
    except Exception as error:
        return mark_cut(shown, len(data), f"the rest could not be kept: {error}"), None
    more = f'read_result(result="{name}", offset={len(shown.encode())})'
    return mark_cut(shown, len(data), f"read on with {more}"), name


async def _stored(part: Image | Document, blobs: BlobStore) -> ResultPart:
    if part.data is None or len(part.data) <= _INLINE_MEDIA_BYTES:
        return part
    try:
        name = await blobs.put(base64.b64decode(part.data))
    except Exception as error:
        return Text(text=f"(the {part.kind} could not be kept: {error})")
    return part.model_copy(update={"data": None, "blob": name})


async def read_more(blobs: BlobStore, want: ToolInput) -> ResultContent:
    """The next piece of a result that was cut."""
    name, offset = str(want.arguments["result"]), int(want.arguments.get("offset", 0))
    try:
        data = await blobs.get(name)
    except (KeyError, ValueError):
        return ResultContent(parts=[Text(text=f"there is no result {name!r}")])
    while offset < len(data) and data[offset] & 0xC0 == 0x80:  # in the middle of a character
        offset += 1
    piece = first_bytes(data[offset:], want.preview_bytes)
    end = offset + len(piece.encode())
    note = "" if end >= len(data) else f"\n[{len(data) - end} bytes follow, from offset {end}]"
    return ResultContent(
        parts=[Text(text=piece + note if piece else "(nothing there: the result has ended)")]
    )
