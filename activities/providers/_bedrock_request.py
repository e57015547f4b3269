"""A conversation as Bedrock's Converse API takes it: values in, JSON (with bytes) out."""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from perdure.messages import Document, Image, Message, Opaque, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest

from .shared import (
    EMPTY,
    Options,
    attachment,
    in_call_order,
    listed_tools,
    merged,
    read_options,
    refuse,
    results_first,
    sendable,
    unsupported,
)

_IN_WORDS = "Answer in words now: call no tool."

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
    """A Bedrock guardrail to apply to the call."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    version: str = "DRAFT"
    trace: Literal["enabled", "disabled", "enabled_full"] | None = None


class BedrockOptions(Options):
    """What `ModelConfig.options` may hold for Bedrock.

    `extra_body` is sent as `additionalModelRequestFields`.
    """

    region: str | None = None
    guardrail: Guardrail | None = None
    cache: bool | None = None
    """Send prompt caching marks; None: to the models known to take them."""
    cache_ttl: Literal["5m", "1h"] | None = None
    service_tier: Literal["priority", "default", "flex", "reserved"] | None = None


def checked(config: ModelConfig) -> BedrockOptions:
    """The config's options; `DefinitionError` for what Bedrock does not take."""
    if config.thinking is not None and "anthropic." not in config.model:
        refuse(config, "thinking", 'only anthropic.* models are known to; others get theirs by "extra_body"')
    return read_options(BedrockOptions, config)


def body_of(request: ModelRequest, options: BedrockOptions) -> dict[str, Any]:
    """The arguments of `converse_stream`: what botocore sends, plus the model's id."""
    body: dict[str, Any] = {
        "modelId": request.config.model,
        "messages": _messages(request, options),
        "inferenceConfig": _inference(request),
    }
    if system := _system(request, options):
        body["system"] = system
    if tools := [_tool(tool.name, tool.description, tool.input_schema) for tool in listed_tools(request)]:
        body["toolConfig"] = {"tools": [*tools, *_mark(request, options, "anthropic.")]}
    if options.guardrail is not None:
        body["guardrailConfig"] = _guardrail(options.guardrail)
    if fields := _thinking(request.config) | options.extra_body:
        body["additionalModelRequestFields"] = fields
    if request.config.effort is not None:
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
        blocks = [{"text": request.instructions}, *_mark(request, options)]
    if listed_tools(request) and (request.tool_choice == "none" or not request.tools):
        # Converse cannot forbid tools that are listed, and wants them listed while the messages
        # hold calls. The line comes after the mark, so the cached prefix is still the same.
        blocks.append({"text": _IN_WORDS})
    return blocks


def _mark(request: ModelRequest, options: BedrockOptions, *takers: str) -> list[dict[str, Any]]:
    """A caching mark, or nothing for models that do not take one in that place."""
    model = request.config.model
    known = any(name in model for name in takers or ("anthropic.", "amazon.nova"))
    if options.cache is False or not (options.cache or known):
        return []
    ttl = {"ttl": options.cache_ttl} if options.cache_ttl else {}
    return [{"cachePoint": {"type": "default", **ttl}}]


def _tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = {"description": description} if description else {}
    return {"toolSpec": {"name": name, **said, "inputSchema": {"json": schema}}}


def _guardrail(guardrail: Guardrail) -> dict[str, Any]:
    trace = {"trace": guardrail.trace} if guardrail.trace else {}
    return {"guardrailIdentifier": guardrail.id, "guardrailVersion": guardrail.version, **trace}


def _thinking(config: ModelConfig) -> dict[str, Any]:
    if config.thinking is None:
        return {}
    if isinstance(config.thinking, int):
        return {"thinking": {"type": "enabled", "budget_tokens": config.thinking}}
    return {"thinking": {"type": "disabled" if config.thinking == "off" else "adaptive"}}


def _messages(request: ModelRequest, options: BedrockOptions) -> list[dict[str, Any]]:
    names = _DocumentNames()
    turns = merged(_turn(message, request, names) for message in in_call_order(request.messages))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": _filled(role, blocks)} for role, blocks in turns
    ]
    earlier = [message for message in messages[:-1] if message["role"] == "user"][-1:]
    for message in [*earlier, *messages[-1:]]:  # as for Anthropic's own API
        message["content"].extend(_mark(request, options))
    return messages


class _DocumentNames:
    """Names for documents as Bedrock takes them: a small alphabet, and no name twice in a request."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def name(self, wanted: str) -> str:
        clean = " ".join(re.sub(r"[^A-Za-z0-9()\[\]\-]+", " ", wanted).split()) or "document"
        self._given[clean] = count = self._given.get(clean, 0) + 1
        return clean if count == 1 else f"{clean} ({count})"


def _turn(message: Message, request: ModelRequest, names: _DocumentNames) -> tuple[str, list[dict[str, Any]]]:
    role = "assistant" if message.role == "assistant" else "user"
    parts = results_first(sendable(message, request.config))
    blocks = [_block(part, request, names) for part in parts]
    return role, [block for block in blocks if block is not None]


def _filled(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks, with a word added where Bedrock refuses a message without one."""
    ends_in_thought = role == "assistant" and blocks and "reasoningContent" in blocks[-1]
    mute_document = any("document" in block for block in blocks) and not any(
        "text" in block for block in blocks
    )
    wanting = not blocks or ends_in_thought or mute_document
    return [*blocks, {"text": EMPTY}] if wanting else list(blocks)


def _block(part: Part, request: ModelRequest, names: _DocumentNames) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"text": text}
        case Thinking(redacted=str(data)):
            return {"reasoningContent": {"redactedContent": base64.b64decode(data)}}
        case Thinking(text=text, signature=str(signature)):
            return {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}}
        case Thinking():
            return None  # unsigned: cut off before its end, or of a model that does not want it back
        case Image():
            return {"image": _source(part, _IMAGES, request.blobs)}
        case Document():
            return {"document": {**_source(part, _DOCUMENTS, request.blobs), "name": names.name(part.name)}}
        case Opaque(data=data):
            return data
        case ToolCall(id=id_, name=name, arguments=arguments):
            return {"toolUse": {"toolUseId": id_, "name": name, "input": arguments}}
        case ToolResult():
            return {"toolResult": _tool_result(part, request, names)}


def _tool_result(result: ToolResult, request: ModelRequest, names: _DocumentNames) -> dict[str, Any]:
    shown = [part for part in result.content if not (isinstance(part, Text) and not part.text.strip())]
    content = [_block(part, request, names) for part in shown]
    # Only some families know `status`: it is sent where it says something.
    status = {"status": "error"} if result.is_error else {}
    return {"toolUseId": result.call_id, "content": content or [{"text": EMPTY}], **status}


def _source(part: Image | Document, formats: Mapping[str, str], blobs: Mapping[str, bytes]) -> dict[str, Any]:
    if part.media_type not in formats:
        raise unsupported(part, "Bedrock")
    return {"format": formats[part.media_type], "source": {"bytes": attachment(part, blobs)}}


def as_json(value: Any) -> Any:
    """The value as botocore writes it: bytes become base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [as_json(item) for item in cast("Iterable[Any]", value)]
    return value
