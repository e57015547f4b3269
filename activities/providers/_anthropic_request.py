"""A conversation as Anthropic's Messages API takes it: values in, JSON out."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from perdure.messages import Document, Image, Message, Opaque, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest

from .shared import (
    EMPTY,
    Options,
    attachment,
    attachment_base64,
    in_call_order,
    listed_tools,
    merged,
    read_options,
    refuse,
    results_first,
    sendable,
    unsupported,
)

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_MARKABLE = ("text", "image", "document", "tool_use", "tool_result")


class AnthropicOptions(Options):
    """What `ModelConfig.options` may hold for Anthropic."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    """Such as `anthropic-beta`."""
    cache: bool = True
    """False sends no prompt caching marks."""
    cache_ttl: Literal["5m", "1h"] | None = None
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "standard_only"] | None = None


def checked(config: ModelConfig) -> AnthropicOptions:
    """The config's options; `DefinitionError` for what Anthropic does not take."""
    for setting in ("temperature", "top_p"):
        if getattr(config, setting) is not None:
            advice = f'for an older model that knows it, set options={{"extra_body": {{"{setting}": ...}}}}'
            refuse(config, setting, advice)
    return read_options(AnthropicOptions, config)


def body_of(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any]:
    """The JSON to send, but for `extra_body`, which is laid over it on the way."""
    config = request.config
    mark = _mark(options)
    tools = [_tool(tool.name, tool.description, tool.input_schema) for tool in listed_tools(request)]
    body: dict[str, Any] = {
        "model": config.model,
        "max_tokens": request.max_tokens,
        "messages": _messages(request, mark),
        "stream": True,
    }
    if request.instructions.strip():
        body["system"] = [{"type": "text", "text": request.instructions, **mark}]
    if tools:
        tools[-1] |= mark
        body["tools"] = tools
        if choice := _tool_choice(request, options):
            body["tool_choice"] = choice
    if config.stop_sequences:
        body["stop_sequences"] = list(config.stop_sequences)
    if config.thinking is not None:
        body["thinking"] = _thinking(config.thinking, request.max_tokens)
    if config.effort is not None:
        body["output_config"] = {"effort": config.effort}
    if options.service_tier is not None:
        body["service_tier"] = options.service_tier
    return body


_LEAST_THINKING = 1024
"""The API takes no smaller budget."""


def _mark(options: AnthropicOptions) -> dict[str, Any]:
    """The caching mark to spread into a block, or nothing."""
    if not options.cache:
        return {}
    ttl = {"ttl": options.cache_ttl} if options.cache_ttl else {}
    return {"cache_control": {"type": "ephemeral", **ttl}}


def _tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = {"description": description} if description else {}
    return {"name": name, **said, "input_schema": schema}


def _tool_choice(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any] | None:
    if request.tool_choice == "none" or not request.tools:
        return {"type": "none"}
    if not options.parallel_tool_calls:
        return {"type": "auto", "disable_parallel_tool_use": True}
    return None


def _thinking(thinking: Literal["adaptive", "off"] | int, max_tokens: int) -> dict[str, Any]:
    if isinstance(thinking, int):
        # A budget of the run may leave less than the reply's usual length; thinking is part of it.
        left = min(thinking, max_tokens - 1)
        return {"type": "enabled", "budget_tokens": left} if left >= _LEAST_THINKING else {"type": "disabled"}
    return {"type": "disabled" if thinking == "off" else "adaptive"}


def _messages(request: ModelRequest, mark: dict[str, Any]) -> list[dict[str, Any]]:
    turns = merged(_turn(message, request) for message in in_call_order(request.messages))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": _filled(role, blocks)} for role, blocks in turns
    ]
    # The end of the conversation is marked, and the end of the user's turn before it: a step of
    # many parallel calls has more blocks than the provider looks back for an earlier mark.
    earlier = [message for message in messages[:-1] if message["role"] == "user"][-1:]
    for message in [*earlier, *messages[-1:]]:
        _mark_end(message["content"], mark)
    return messages


def _turn(message: Message, request: ModelRequest) -> tuple[str, list[dict[str, Any]]]:
    role = "assistant" if message.role == "assistant" else "user"
    blocks = [_block(part, request) for part in results_first(sendable(message, request.config))]
    return role, [block for block in blocks if block is not None]


def _filled(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks, with a word added where the API refuses an empty or a merely thinking message."""
    ends_in_thought = role == "assistant" and blocks and blocks[-1]["type"].endswith("thinking")
    return [*blocks, {"type": "text", "text": EMPTY}] if not blocks or ends_in_thought else blocks


def _mark_end(blocks: list[dict[str, Any]], mark: dict[str, Any]) -> None:
    for index in reversed(range(len(blocks))):
        if blocks[index]["type"] in _MARKABLE:
            blocks[index] = {**blocks[index], **mark}
            return


def _block(part: Part, request: ModelRequest) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Thinking(redacted=str(data)):
            return {"type": "redacted_thinking", "data": data}
        case Thinking(text=text, signature=str(signature)):
            return {"type": "thinking", "thinking": text, "signature": signature}
        case Thinking():
            return None  # unsigned, so cut off before its end: the API would refuse it
        case Image() | Document():
            return _attachment(part, request.blobs)
        case Opaque(data=data):
            return data
        case ToolCall(id=id_, name=name, arguments=arguments):
            return {"type": "tool_use", "id": id_, "name": name, "input": arguments}
        case ToolResult():
            return _tool_result(part, request)


def _tool_result(result: ToolResult, request: ModelRequest) -> dict[str, Any]:
    shown = [part for part in result.content if not (isinstance(part, Text) and not part.text.strip())]
    content = [_block(part, request) for part in shown]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id}
    block["content"] = content or [{"type": "text", "text": EMPTY}]
    return block | ({"is_error": True} if result.is_error else {})


def _attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    source = {"type": "base64", "media_type": part.media_type}
    if isinstance(part, Image):
        if part.media_type not in _IMAGES:
            raise unsupported(part, "Anthropic")
        return {"type": "image", "source": {**source, "data": attachment_base64(part, blobs)}}
    if part.media_type == "application/pdf":
        source["data"] = attachment_base64(part, blobs)
    elif part.media_type.startswith("text/"):
        text = attachment(part, blobs).decode(errors="replace")
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        raise unsupported(part, "Anthropic")
    return {"type": "document", "source": source, "title": part.name}
