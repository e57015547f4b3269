"""Rules for writing a conversation in a provider's format, shared by all adapters.

A conversation holds messages of three roles: user, assistant, and tool (results of the assistant's calls).
Most providers know only user and assistant, demand that the two alternate, and refuse empty content.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from perdure.errors import ModelError
from perdure.media import in_words
from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    Text,
    Thinking,
    ToolResult,
    estimated_tokens,
)
from perdure.model import ModelConfig, ModelRequest, ToolDefinition
from perdure.tokens import json_tokens, media_tokens, text_tokens, tool_prompt_tokens

B = TypeVar("B")

EMPTY_TEXT: Final = "(empty)"
"""Placeholder where a provider demands content and there is none."""


def sendable_parts(message: Message, config: ModelConfig) -> list[Part]:
    """Return the parts of the message that this model may be sent.

    Leaves out reasoning of another model, opaque blocks of another provider, and blank text.
    """
    same_model = message.meta is None or message.meta.model == config.name

    def fits(part: Part) -> bool:
        match part:
            case Thinking():
                # Signatures are bound to the model; another one refuses them.
                return same_model
            case Opaque(provider=provider):
                return provider == config.provider
            case Text(text=text):
                # Providers refuse blank text, and some models produce it.
                return bool(text.strip())
            case _:
                return True

    return [part for part in message.parts if fits(part)]


def sendable_text(message: Message, config: ModelConfig) -> str:
    """Return the text of the message, for a provider that reads nothing else; `EMPTY_TEXT` if there is none.

    Raises:
        ModelError: kind "bad_request" for an image or a document, which must not vanish unnoticed.

    """
    parts = sendable_parts(message, config)
    for part in parts:
        if isinstance(part, Image | Document):
            raise unsupported_media_error(part, config.provider)
    return "".join(part.text for part in parts if isinstance(part, Text)) or EMPTY_TEXT


def put_results_after_calls(messages: Iterable[Message]) -> list[Message]:
    """Return the messages with tool results directly behind the assistant's message that made the calls.

    A person may write while tools run; providers refuse a message between a call and its result.
    """
    ordered: list[Message] = []
    for message in messages:
        at = len(ordered)
        if message.role == "tool":
            while at and ordered[at - 1].role == "user":
                at -= 1
        # Without an assistant's message before them the results stay where they are.
        ordered.insert(at or len(ordered), message)
    return ordered


def merge_turns(turns: Iterable[tuple[str, list[B]]]) -> list[tuple[str, list[B]]]:
    """Join neighbouring turns of the same role, for providers that want the roles to alternate."""
    merged: list[tuple[str, list[B]]] = []
    for role, blocks in turns:
        if merged and merged[-1][0] == role:
            merged[-1][1].extend(blocks)
        else:
            merged.append((role, list(blocks)))
    return merged


def put_results_first(parts: list[Part]) -> list[Part]:
    """Return the parts with tool results before anything else: they must follow their calls at once."""
    return sorted(parts, key=lambda part: not isinstance(part, ToolResult))


def tools_to_list(request: ModelRequest) -> tuple[ToolDefinition, ...]:
    """Return the tools to list: those offered, or bare definitions for the calls in the conversation.

    Some providers refuse messages with tool calls when no tools are listed.
    """
    if request.tools:
        return request.tools
    names = dict.fromkeys(name for message in request.messages for name in message.called_tools)
    return tuple(ToolDefinition(name=n, description="", input_schema={"type": "object"}) for n in names)


def attachment_bytes(part: Image | Document, blobs: Mapping[str, bytes]) -> bytes:
    """Return the bytes of an image or a document; `blobs` is `ModelRequest.blobs`.

    Raises:
        ModelError: kind "bug" when its blob is not in `blobs`, "bad_request" when its data is not base64.

    """
    if part.blob is not None:
        if part.blob not in blobs:
            raise ModelError("bug", f"the request names the blob {part.blob!r} but does not bring its bytes")
        return blobs[part.blob]
    try:
        return base64.b64decode(part.data or "", validate=True)
    except ValueError:
        raise ModelError("bad_request", f"the data of a {part.kind} is not valid base64") from None


def attachment_base64(part: Image | Document, blobs: Mapping[str, bytes]) -> str:
    """Return the bytes of an image or a document as base64 text; raises as `attachment_bytes` does."""
    return base64.b64encode(attachment_bytes(part, blobs)).decode()


def attachment_text(part: Document, blobs: Mapping[str, bytes]) -> str:
    """Return the text of a document of text; raises as `attachment_bytes` does."""
    # No request can hold a zero byte in a text.
    return attachment_bytes(part, blobs).decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def unsupported_media_error(part: Image | Document, provider: str) -> ModelError:
    """Return the error for a media type that the provider does not read."""
    return ModelError("bad_request", f"{provider} does not read {part.kind}s of type {part.media_type!r}")


def unsupported_media_text(part: Image | Document, provider: str) -> str:
    """Return the words that a model reads in place of an attachment of a type that its provider does not read."""
    return in_words(part, f"{provider} does not read {part.kind}s of that type")


def estimate_input_tokens(request: ModelRequest) -> int:
    """Return an upper bound of the tokens that a request has the model read."""
    tools = [tool.model_dump() for tool in request.tools]
    fixed = text_tokens(request.instructions)
    if tools:
        fixed += json_tokens(tools) + tool_prompt_tokens(request.config.provider)
    if not request.blobs:
        return fixed + sum([message.token_bound for message in request.messages])
    return fixed + sum(estimated_tokens(_with_counts(message, request.blobs)) for message in request.messages)


def _with_counts(message: Message, blobs: Mapping[str, bytes]) -> Message:
    """Return the message with the tokens of media that its writer did not count."""
    if not any(blob in blobs for blob in message.blobs):
        return message
    parts = [_with_count(part, blobs) for part in message.parts]
    return Message.model_validate({"role": message.role, "parts": parts})


def _with_count(part: Part, blobs: Mapping[str, bytes]) -> Part:
    match part:
        case Image() | Document() if part.blob in blobs and not part.tokens:
            tokens = media_tokens(part.kind, part.media_type, blobs[part.blob or ""])
            return part.model_copy(update={"tokens": tokens})
        case ToolResult():
            return part.model_copy(update={"content": [_with_count(piece, blobs) for piece in part.content]})
        case _:
            return part
