"""Requests in the format of Anthropic's Messages API: values in, JSON out."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from perdure.messages import Document, Image, Message, Opaque, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest
from perdure.providers import (
    EMPTY_TEXT,
    ProviderOptions,
    attachment_base64,
    attachment_bytes,
    merge_turns,
    put_results_after_calls,
    put_results_first,
    read_options,
    reject_setting,
    sendable_parts,
    tools_to_list,
    unsupported_media_text,
)

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_MARKABLE = ("text", "image", "document", "tool_use", "tool_result")
"""Blocks that may carry a caching mark."""

_LEAST_THINKING = 1024
"""Smallest budget for thinking that the API takes, in tokens."""


class AnthropicOptions(ProviderOptions):
    """Options of `ModelConfig.options` for Anthropic."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    """Further HTTP headers, such as `anthropic-beta`."""
    cache: bool = True
    """Switch for prompt caching marks."""
    cache_ttl: Literal["5m", "1h"] | None = None
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "standard_only"] | None = None


def read_config(config: ModelConfig) -> AnthropicOptions:
    """Read the config's options, and check its settings.

    Raises:
        DefinitionError: an option or a setting that the API does not take.

    """
    for setting in ("temperature", "top_p"):
        if getattr(config, setting) is not None:
            advice = f'for an older model that knows it, set options={{"extra_body": {{"{setting}": ...}}}}'
            reject_setting(config, setting, advice)
    return read_options(AnthropicOptions, config)


def build_body(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any]:
    """Return the JSON to send, without `extra_body`: the SDK merges that into it."""
    config = request.config
    mark = _cache_mark(options)
    tools = [_tool(tool.name, tool.description, tool.input_schema) for tool in tools_to_list(request)]
    body: dict[str, Any] = {
        "model": config.model,
        "max_tokens": request.max_tokens,
        "messages": _messages(request, mark),
        "stream": True,
    }
    if request.instructions.strip():
        body["system"] = [{"type": "text", "text": request.instructions, **mark}]
    if tools:
        # The first of three marks: tools and instructions seldom change, the messages always do.
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


def _cache_mark(options: AnthropicOptions) -> dict[str, Any]:
    """Return the fields that mark a block as the end of a cached prefix, or none."""
    if not options.cache:
        return {}
    ttl = {"ttl": options.cache_ttl} if options.cache_ttl else {}
    return {"cache_control": {"type": "ephemeral", **ttl}}


def _tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"name": name, **described, "input_schema": schema}


def _tool_choice(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any] | None:
    # The tools of past calls stay listed where none is offered, and must not be called.
    if request.tool_choice == "none" or not request.tools:
        return {"type": "none"}
    # The API refuses to force a tool of a model that thinks.
    forced = request.tool_choice == "required" and request.config.thinking in (None, "off")
    choice = "any" if forced else "auto"
    if not options.parallel_tool_calls:
        return {"type": choice, "disable_parallel_tool_use": True}
    return None if choice == "auto" else {"type": choice}


def _thinking(thinking: Literal["adaptive", "off"] | int, max_tokens: int) -> dict[str, Any]:
    if isinstance(thinking, int):
        # A budget of the run may leave less than the reply's usual length; thinking is part of it.
        budget = min(thinking, max_tokens - 1)
        if budget < _LEAST_THINKING:
            return {"type": "disabled"}
        return {"type": "enabled", "budget_tokens": budget}
    return {"type": "disabled" if thinking == "off" else "adaptive"}


def _messages(request: ModelRequest, mark: dict[str, Any]) -> list[dict[str, Any]]:
    turns = merge_turns(_turn(message, request) for message in put_results_after_calls(request.messages))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": _fill_empty(role, blocks)} for role, blocks in turns
    ]
    # The end of the conversation is marked, and the end of the user's turn before it: a step of
    # many parallel calls has more blocks than the provider looks back for an earlier mark.
    previous = [message for message in messages[:-1] if message["role"] == "user"][-1:]
    for message in [*previous, *messages[-1:]]:
        _mark_end(message["content"], mark)
    return messages


def _turn(message: Message, request: ModelRequest) -> tuple[str, list[dict[str, Any]]]:
    role = "assistant" if message.role == "assistant" else "user"
    blocks = [_block(part, request) for part in put_results_first(sendable_parts(message, request.config))]
    return role, [block for block in blocks if block is not None]


def _fill_empty(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The API refuses a message without blocks, and an assistant's message that ends in thinking.
    ends_in_thought = role == "assistant" and blocks and blocks[-1]["type"].endswith("thinking")
    return [*blocks, {"type": "text", "text": EMPTY_TEXT}] if not blocks or ends_in_thought else blocks


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
            # Unsigned, so it was cut off before its end: the API would refuse it.
            return None
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
    block["content"] = content or [{"type": "text", "text": EMPTY_TEXT}]
    return block | ({"is_error": True} if result.is_error else {})


def _attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    source = {"type": "base64", "media_type": part.media_type}
    if isinstance(part, Image):
        if part.media_type not in _IMAGES:
            return {"type": "text", "text": unsupported_media_text(part, "Anthropic")}
        return {"type": "image", "source": {**source, "data": attachment_base64(part, blobs)}}
    if part.media_type == "application/pdf":
        source["data"] = attachment_base64(part, blobs)
    elif part.media_type.startswith("text/"):
        text = attachment_bytes(part, blobs).decode(errors="replace")
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        return {"type": "text", "text": unsupported_media_text(part, "Anthropic")}
    return {"type": "document", "source": source, "title": part.name}
