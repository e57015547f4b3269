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
    attachment_text,
    capabilities_of,
    make_sendable,
    put_results_first,
    read_options,
    reject_setting,
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

_MARKABLE = ("text", "image", "document", "tool_use", "tool_result")
"""Blocks that may carry a caching mark."""


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
    capabilities_of(config, "anthropic")
    return read_options(AnthropicOptions, config)


def build_body(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any]:
    """Return the request to send as plain values, without `extra_body`."""
    request = make_sendable(request, capabilities_of(request.config, "anthropic"))
    mark = _cache_mark(options)
    turns = split_turns(request.messages)
    ends = marked_turns(turns)
    messages = [_message(turn, request.blobs, mark if n in ends else {}) for n, turn in enumerate(turns)]
    return {**_fields(request, options), "messages": messages}


def render_body(request: ModelRequest, options: AnthropicOptions) -> Body:
    """Return the JSON of `build_body` with `extra_body` in it; what is kept of earlier requests is not made again."""
    request = make_sendable(request, capabilities_of(request.config, "anthropic"))
    mark = _cache_mark(options)
    turns = split_turns(request.messages)
    ends = marked_turns(turns) if mark else ()

    def render(turn: Turn) -> list[dict[str, Any]]:
        return [_message(turn, request.blobs, {})]

    pieces = [
        Piece.of([_message(turn, request.blobs, mark)])
        if n in ends
        else render_turn(turn, "anthropic", None, render)
        for n, turn in enumerate(turns)
    ]
    return join_body(_fields(request, options), "messages", pieces, options.extra_body)


def _fields(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any]:
    """Return the fields of a sendable request beside its messages."""
    config = request.config
    mark = _cache_mark(options)
    tools = [_tool(tool.name, tool.description, tool.input_schema) for tool in tools_to_list(request)]
    body: dict[str, Any] = {
        "model": config.model,
        "max_tokens": request.max_tokens,
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
        body["thinking"] = _thinking(config.thinking)
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


def _thinking(thinking: Literal["adaptive", "off"] | int) -> dict[str, Any]:
    if isinstance(thinking, int):
        return {"type": "enabled", "budget_tokens": thinking}
    return {"type": "disabled" if thinking == "off" else "adaptive"}


def _message(turn: Turn, blobs: Mapping[str, bytes], mark: dict[str, Any]) -> dict[str, Any]:
    """Return the message of this API for a turn, its end marked unless the mark is empty."""
    role = "assistant" if turn[0].role == "assistant" else "user"
    content = _fill_empty(role, [block for message in turn for block in _blocks(message, blobs)])
    if mark:
        _mark_end(content, mark)
    return {"role": role, "content": content}


def _blocks(message: Message, blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the blocks of a sendable message; they depend on nothing else."""
    blocks = [_block(part, blobs) for part in put_results_first(message.parts)]
    return [block for block in blocks if block is not None]


def _fill_empty(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The API refuses a message without blocks, and an assistant's message that ends in thinking.
    ends_in_thought = role == "assistant" and blocks and blocks[-1]["type"].endswith("thinking")
    return [*blocks, {"type": "text", "text": EMPTY_TEXT}] if not blocks or ends_in_thought else blocks


def _mark_end(blocks: list[dict[str, Any]], mark: dict[str, Any]) -> None:
    for index in reversed(range(len(blocks))):
        if blocks[index]["type"] in _MARKABLE:
            blocks[index] = {**blocks[index], **mark}
            return


def _block(part: Part, blobs: Mapping[str, bytes]) -> dict[str, Any] | None:
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
            return _attachment(part, blobs)
        case Opaque(data=data):
            return data
        case ToolCall(id=id_, name=name, arguments=arguments):
            return {"type": "tool_use", "id": id_, "name": name, "input": arguments}
        case ToolResult():
            return _tool_result(part, blobs)


def _tool_result(result: ToolResult, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    content = [_block(part, blobs) for part in result.content]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id}
    block["content"] = content or [{"type": "text", "text": EMPTY_TEXT}]
    return block | ({"is_error": True} if result.is_error else {})


def _attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    source = {"type": "base64", "media_type": part.media_type}
    if isinstance(part, Image):
        return {"type": "image", "source": {**source, "data": attachment_base64(part, blobs)}}
    if part.media_type == "application/pdf":
        source["data"] = attachment_base64(part, blobs)
    else:
        source = {"type": "text", "media_type": "text/plain", "data": attachment_text(part, blobs)}
    return {"type": "document", "source": source, "title": part.name}
