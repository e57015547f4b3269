"""Plain requests: what a provider refuses is put into words, or left out, and the call is made once more.

Rules
1. Adapters make every request such that its provider should take it. A part that is refused all the same is one that
   only some models take: an attachment that no model has answered yet, or a model's own part, such as a thought.
2. The provider's words decide which. Without such words attachments go first: most of them come from people.
3. A request without thoughts asks for none: a model that thinks may want to see those of its own turn.
4. The transcript keeps every part.
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from perdure.errors import ModelError
from perdure.messages import Message, Opaque, Part, Thinking
from perdure.model import ModelConfig, ModelRequest

from .attachments import newest_attachments, readable_messages

_ABOUT_OWN_PARTS: Final = re.compile(
    r"(?i)think|thought|reason(?:ing|er)|signature|encrypted|tool[_ ]use|item_"
)


@dataclass(frozen=True, kw_only=True)
class PlainRequest:
    """Request without a part that its provider may have refused."""

    request: ModelRequest
    refused: tuple[str, ...] = ()
    """Keys of the attachments that are in words."""


def plain_request(request: ModelRequest, words: str) -> PlainRequest | None:
    """Return the request without what those words of its provider may be about, or None: it has nothing of the kind."""
    attachments = newest_attachments(request.messages)
    has_own_parts = any(_is_own(part) for message in request.messages for part in message.parts)
    if has_own_parts and (not attachments or _ABOUT_OWN_PARTS.search(words)):
        messages = tuple(_without_own_parts(message) for message in request.messages)
        return PlainRequest(request=replace(request, config=_unthinking(request.config), messages=messages))
    if not attachments:
        return None
    in_words = readable_messages(request.messages, request.blobs, attachments)
    return PlainRequest(request=replace(request, messages=in_words), refused=attachments)


def overflow_of(error: ModelError) -> ModelError:
    """Return the error; as an overflow where a conversation has too many bytes: less of it may pass."""
    if error.kind != "too_large":
        return error
    return ModelError("context_overflow", str(error), request_id=error.request_id, usage=error.usage)


def _is_own(part: Part) -> bool:
    return isinstance(part, Thinking | Opaque)


def _without_own_parts(message: Message) -> Message:
    if not any(_is_own(part) for part in message.parts):
        return message
    parts = [part for part in message.parts if not _is_own(part)]
    # Not a copy: it would take the counts of the whole message along.
    return Message(role=message.role, parts=parts, meta=message.meta, answer_of=message.answer_of)


def _unthinking(config: ModelConfig) -> ModelConfig:
    return config if config.thinking in (None, "off") else config.model_copy(update={"thinking": "off"})
