"""Attachments of a model call: shown by their real types, or in words where they cannot be read.

The transcript stays as it is. Only the view of this call changes, so a session goes on after a picture that no
provider can read, and another model of the chain may read what this one cannot.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from perdure.media import decode, in_words, problem_with_bytes
from perdure.media_types import sniff_media_type
from perdure.messages import Document, Image, Message, Part, ResultPart, Text, ToolResult
from perdure.wire.effects import tail_of

_KEY_CHARS: Final = 16
"""Length of an attachment's key: enough to tell apart those of one run."""


def readable_messages(
    messages: Iterable[Message], blobs: Mapping[str, bytes], refused: Container[str] = ()
) -> tuple[Message, ...]:
    """Return the messages with each attachment under its real type, or as words if it cannot be read.

    `refused` has the keys of attachments that the provider has refused, see `attachment_key`.
    """
    return tuple(
        _readable(message, blobs, refused) if message.has_attachments else message for message in messages
    )


def _readable(message: Message, blobs: Mapping[str, bytes], refused: Container[str]) -> Message:
    parts = [_readable_part(part, blobs, refused) for part in message.parts]
    return message.model_copy(update={"parts": parts})


def _readable_part(part: Part, blobs: Mapping[str, bytes], refused: Container[str]) -> Part:
    match part:
        case Image() | Document():
            return _attachment(part, blobs, refused)
        case ToolResult() if any(isinstance(piece, Image | Document) for piece in part.content):
            content: list[ResultPart] = [
                _attachment(piece, blobs, refused) if isinstance(piece, Image | Document) else piece
                for piece in part.content
            ]
            return part.model_copy(update={"content": content})
        case _:
            return part


def _attachment(
    part: Image | Document, blobs: Mapping[str, bytes], refused: Container[str]
) -> Image | Document | Text:
    try:
        data = blobs[part.blob] if part.blob is not None else decode(part)
        problem = problem_with_bytes(part, data)
    except KeyError:
        return Text(text=in_words(part, "its bytes are not in the blob store, or damaged there"))
    except ValueError as error:
        return Text(text=in_words(part, str(error)))
    if problem is not None:
        return Text(text=in_words(part, problem))
    if attachment_key(part) in refused:
        return Text(text=in_words(part, "the provider has refused it"))
    real = sniff_media_type(data)
    is_same = (
        real is None or real == part.media_type or isinstance(part, Document) != (real == "application/pdf")
    )
    return part if is_same else part.model_copy(update={"media_type": real})


def attachment_key(part: Image | Document) -> str:
    """Return the key of an attachment: attachments with the same bytes share it."""
    name = part.blob if part.blob is not None else sha256((part.data or "").encode()).hexdigest()
    return name[:_KEY_CHARS]


def newest_attachments(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the keys of the attachments that no model has answered yet: one of them may be what it refuses."""
    parts: list[Part | ResultPart] = []
    for message in tail_of(messages):
        parts += message.parts
        for result in message.tool_results:
            parts += result.content
    return tuple(dict.fromkeys(attachment_key(part) for part in parts if isinstance(part, Image | Document)))
