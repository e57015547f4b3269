"""Requests in the format of Bedrock's Converse API: values in, JSON (with bytes) out."""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    media_of,
)
from perdure.model import ModelConfig, ModelRequest
from perdure.providers import (
    EMPTY_TEXT,
    ProviderOptions,
    attachment_bytes,
    attachment_text,
    capabilities_of,
    make_sendable,
    read_options,
    tools_to_list,
)
from perdure.providers.rendering import (
    Body,
    Piece,
    Turn,
    join_body,
    marked_turns,
    render_turn,
    split_turns,
)

from ._bedrock_families import check_thinking, error_in_words, family_of, thinking_fields

_ANSWER_IN_WORDS = "Answer in words now: call no tool."

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}

_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}


class Guardrail(BaseModel):
    """Guardrail of Bedrock to apply to the call."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    version: str = "DRAFT"
    trace: Literal["enabled", "disabled", "enabled_full"] | None = None


class BedrockOptions(ProviderOptions):
    """Options of `ModelConfig.options` for Bedrock.

    `extra_body` is sent as `additionalModelRequestFields`.
    """

    region: str | None = None
    guardrail: Guardrail | None = None
    cache: bool | None = None
    """Switch for prompt caching marks. None: on for the models known to take them."""
    cache_ttl: Literal["5m", "1h"] | None = None
    service_tier: Literal["priority", "default", "flex", "reserved"] | None = None
    stream: bool | None = None
    """Stream the answer. None: unless the model is known not to while it has tools."""


def read_config(config: ModelConfig) -> BedrockOptions:
    """Read the config's options, and check its settings.

    Raises:
        DefinitionError: an option or a setting that the model does not take.

    """
    check_thinking(config)
    capabilities_of(config, "bedrock")
    return read_options(BedrockOptions, config)


def build_body(request: ModelRequest, options: BedrockOptions) -> dict[str, Any]:
    """Return the request to send as plain values: the arguments of `converse_stream`."""
    request = make_sendable(request, capabilities_of(request.config, "bedrock"))
    mark = _cache_mark(request, options)
    turns = split_turns(request.messages)
    ends, names = marked_turns(turns), _document_names(request.messages)
    has_status = family_of(request.config).result_status
    messages = [
        _message(turn, request.blobs, names, mark if n in ends else [], has_status=has_status)
        for n, turn in enumerate(turns)
    ]
    return {**_fields(request, options), "messages": messages}


def render_body(request: ModelRequest, options: BedrockOptions) -> tuple[dict[str, Any], Body]:
    """Return the arguments of `converse_stream` beside the messages, and the JSON to send.

    The JSON is that of `build_body` without the model's id, which stands in the address. What is kept of earlier
    requests is not made again.
    """
    request = make_sendable(request, capabilities_of(request.config, "bedrock"))
    mark = _cache_mark(request, options)
    turns = split_turns(request.messages)
    ends, names = marked_turns(turns) if mark else (), _document_names(request.messages)

    has_status = family_of(request.config).result_status

    def render(turn: Turn, end: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        return [_message(turn, request.blobs, names, end or [], has_status=has_status)]

    pieces = [
        Piece.of(render(turn, mark)) if n in ends else render_turn(turn, "converse", has_status, render)
        for n, turn in enumerate(turns)
    ]
    arguments = _fields(request, options)
    fields = {name: value for name, value in arguments.items() if name != "modelId"}
    return arguments, join_body(fields, "messages", pieces)


def _fields(request: ModelRequest, options: BedrockOptions) -> dict[str, Any]:
    """Return the arguments for a sendable request beside its messages."""
    family = family_of(request.config)
    body: dict[str, Any] = {"modelId": request.config.model, "inferenceConfig": _inference(request)}
    if system := _system(request, options):
        body["system"] = system
    if tools := [_tool(tool.name, tool.description, tool.input_schema) for tool in tools_to_list(request)]:
        # As with Anthropic's own API, a model that thinks cannot be forced.
        forced = request.tool_choice == "required" and request.config.thinking in (None, "off")
        choice: dict[str, Any] = {"toolChoice": {"any": {}}} if forced and request.tools else {}
        body["toolConfig"] = {"tools": [*tools, *_cache_mark(request, options, "anthropic.")], **choice}
    if options.guardrail is not None:
        body["guardrailConfig"] = _guardrail(options.guardrail)
    if fields := thinking_fields(request.config) | options.extra_body:
        body["additionalModelRequestFields"] = fields
    if request.config.effort is not None and family.effort_in_config:
        body["outputConfig"] = {"effort": request.config.effort}
    if options.service_tier is not None:
        body["serviceTier"] = {"type": options.service_tier}
    return body


def _inference(request: ModelRequest) -> dict[str, Any]:
    config = request.config
    named = {"temperature": config.temperature, "topP": config.top_p}
    stops = {"stopSequences": list(config.stop_sequences)} if config.stop_sequences else {}
    return {"maxTokens": request.max_tokens, **{k: v for k, v in named.items() if v is not None}, **stops}


def _system(request: ModelRequest, options: BedrockOptions) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if request.instructions.strip():
        blocks = [{"text": request.instructions}, *_cache_mark(request, options)]
    if tools_to_list(request) and (request.tool_choice == "none" or not request.tools):
        # Converse cannot forbid tools that are listed, and wants them listed while the messages
        # hold calls. The line comes after the mark, so the cached prefix is still the same.
        blocks.append({"text": _ANSWER_IN_WORDS})
    return blocks


def _cache_mark(request: ModelRequest, options: BedrockOptions, *families: str) -> list[dict[str, Any]]:
    """Return a caching mark, or nothing for a model outside the families that take it in that place."""
    model, capabilities = request.config.model, capabilities_of(request.config, "bedrock")
    known = any(name in model for name in families) if families else capabilities.caching
    if options.cache is False or not (options.cache or known):
        return []
    ttl = {"ttl": options.cache_ttl} if options.cache_ttl else {}
    return [{"cachePoint": {"type": "default", **ttl}}]


def _tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"toolSpec": {"name": name, **described, "inputSchema": {"json": schema}}}


def _guardrail(guardrail: Guardrail) -> dict[str, Any]:
    trace = {"trace": guardrail.trace} if guardrail.trace else {}
    return {"guardrailIdentifier": guardrail.id, "guardrailVersion": guardrail.version, **trace}


def _message(
    turn: Turn,
    blobs: Mapping[str, bytes],
    names: Iterator[str],
    mark: list[dict[str, Any]],
    *,
    has_status: bool,
) -> dict[str, Any]:
    """Return the message of this API for a turn, with the mark at its end; `names` has those of its documents."""
    role = "assistant" if turn[0].role == "assistant" else "user"
    shown = turn if has_status else [error_in_words(message) for message in turn]
    blocks = [block for message in shown for block in _blocks(message, blobs, names)]
    return {"role": role, "content": [*_fill_empty(role, blocks), *mark]}


def _document_names(messages: Iterable[Message]) -> Iterator[str]:
    """Yield the names of the documents as Bedrock takes them: unique in a request, of few characters."""
    counts: dict[str, int] = {}
    for message in messages:
        for part in media_of(message) if message.has_attachments else ():
            if isinstance(part, Document) and part.media_type in _DOCUMENTS:
                clean = " ".join(re.sub(r"[^A-Za-z0-9()\[\]\-]+", " ", part.name).split()) or "document"
                counts[clean] = count = counts.get(clean, 0) + 1
                yield clean if count == 1 else f"{clean} ({count})"


def _blocks(message: Message, blobs: Mapping[str, bytes], names: Iterator[str]) -> list[dict[str, Any]]:
    """Return the blocks of a sendable message; they depend on nothing else but the names of its documents."""
    blocks = [_block(part, blobs, names) for part in message.parts]
    return [block for block in blocks if block is not None]


def _fill_empty(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Bedrock refuses a message without blocks, one that ends in reasoning, and a document without text.
    ends_in_thought = role == "assistant" and blocks and "reasoningContent" in blocks[-1]
    has_text = any("text" in block for block in blocks)
    mute_document = any("document" in block for block in blocks) and not has_text
    needs_text = not blocks or ends_in_thought or mute_document
    return [*blocks, {"text": EMPTY_TEXT}] if needs_text else list(blocks)


def _block(part: Part, blobs: Mapping[str, bytes], names: Iterator[str]) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"text": text}
        case Thinking(redacted=str(data)):
            return {"reasoningContent": {"redactedContent": base64.b64decode(data)}}
        case Thinking(text=text, signature=str(signature)):
            return {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}}
        case Thinking():
            # Unsigned: it was cut off before its end, or its model does not want it back.
            return None
        case Image() | Document():
            return _attachment(part, blobs, names)
        case Opaque(data=data):
            return data
        case ToolCall(id=id_, name=name, arguments=arguments):
            return {"toolUse": {"toolUseId": id_, "name": name, "input": arguments}}
        case ToolResult():
            return {"toolResult": _tool_result(part, blobs, names)}


def _tool_result(result: ToolResult, blobs: Mapping[str, bytes], names: Iterator[str]) -> dict[str, Any]:
    content = [_block(part, blobs, names) for part in result.content]
    # It is sent where it says something.
    status = {"status": "error"} if result.is_error else {}
    return {"toolUseId": result.call_id, "content": content or [{"text": EMPTY_TEXT}], **status}


def _attachment(part: Image | Document, blobs: Mapping[str, bytes], names: Iterator[str]) -> dict[str, Any]:
    if isinstance(part, Document) and part.media_type not in _DOCUMENTS:
        # Text of a type that this API has no word for, such as the source of a program.
        return {"text": f"{part.name}:\n{attachment_text(part, blobs)}"}
    source = {"bytes": attachment_bytes(part, blobs)}
    if isinstance(part, Image):
        return {"image": {"format": _IMAGES[part.media_type], "source": source}}
    return {"document": {"format": _DOCUMENTS[part.media_type], "source": source, "name": next(names)}}
