"""Requests in the format of the chat completions API: values in, JSON out."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from perdure.messages import Document, Image, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest
from perdure.providers import (
    EMPTY_TEXT,
    Capabilities,
    ProviderOptions,
    attachment_base64,
    attachment_text,
    capabilities_of,
    make_sendable,
    merge_turns,
    read_options,
    reject_setting,
)
from perdure.providers.rendering import Body, Piece, Turn, join_body, render_turn, split_turns

from ._openai_servers import server_of

_ASK_FOR_USAGE = {"stream_options": {"include_usage": True}}


class OpenAIOptions(ProviderOptions):
    """Options of `ModelConfig.options` for OpenAI, and for servers that speak its API."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] | None = None
    """Field that bounds a reply. None: `max_completion_tokens` for OpenAI, `max_tokens` for other servers."""
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    seed: int | None = None


def read_config(config: ModelConfig, provider: str = "") -> OpenAIOptions:
    """Read the config's options, and check its settings; `provider` where the config names another.

    Raises:
        DefinitionError: an option or a setting that the API does not take.

    """
    if config.thinking not in (None, "off"):
        reject_setting(config, f"thinking={config.thinking!r}", 'set effort, or thinking="off"')
    if config.thinking == "off" and config.effort is not None:
        reject_setting(config, 'thinking="off" together with effort', "set one of them")
    capabilities_of(config, provider)
    return read_options(OpenAIOptions, config)


def build_body(request: ModelRequest, options: OpenAIOptions, provider: str) -> dict[str, Any]:
    """Return the request to send as plain values, without `extra_body`."""
    capabilities = capabilities_of(request.config, provider)
    request = make_sendable(request, capabilities)
    thoughts = _thoughts_field(capabilities)
    messages = [
        message
        for turn in split_turns(request.messages)
        for message in _messages(turn, request.blobs, thoughts)
    ]
    return {**_fields(request, options, provider), "messages": [*_system(request), *messages]}


def render_body(request: ModelRequest, options: OpenAIOptions, provider: str) -> Body:
    """Return the JSON of `build_body` with `extra_body` in it; what is kept of earlier requests is not made again."""
    capabilities = capabilities_of(request.config, provider)
    request = make_sendable(request, capabilities)
    thoughts = _thoughts_field(capabilities)

    def render(turn: Turn) -> list[dict[str, Any]]:
        return _messages(turn, request.blobs, thoughts)

    turns = split_turns(request.messages)
    pieces = [render_turn(turn, "chat completions", thoughts, render) for turn in turns]
    system = Piece.of(_system(request))
    return join_body(_fields(request, options, provider), "messages", (system, *pieces), options.extra_body)


def _fields(request: ModelRequest, options: OpenAIOptions, provider: str) -> dict[str, Any]:
    """Return the fields of a sendable request beside its messages."""
    config = request.config
    # Newer models of OpenAI refuse the old name; servers that imitate the API know no other.
    usual_field = "max_completion_tokens" if provider in ("openai", "azure") else "max_tokens"
    optional: dict[str, Any] = {
        options.max_tokens_field or usual_field: request.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop": list(config.stop_sequences) or None,
        "reasoning_effort": "none" if config.thinking == "off" else config.effort,
        "prompt_cache_key": options.prompt_cache_key,
        "service_tier": options.service_tier,
        "seed": options.seed,
        **_tools(request, options),
    }
    return {
        "model": config.model,
        "stream": True,
        **({} if server_of(provider).counts_unasked else _ASK_FOR_USAGE),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _tools(request: ModelRequest, options: OpenAIOptions) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in request.tools
    ]
    choice = {} if request.tool_choice == "auto" else {"tool_choice": request.tool_choice}
    return {"tools": tools, **choice, "parallel_tool_calls": options.parallel_tool_calls}


def _thoughts_field(capabilities: Capabilities) -> str | None:
    return capabilities.thinking_field if capabilities.thinking == "returned" else None


def _system(request: ModelRequest) -> list[dict[str, Any]]:
    return [{"role": "system", "content": request.instructions}] if request.instructions.strip() else []


def _messages(turn: Turn, blobs: Mapping[str, bytes], thoughts: str | None) -> list[dict[str, Any]]:
    """Return the messages of this API for a turn of a sendable request."""
    messages: list[dict[str, Any]] = []
    roles: list[tuple[str, list[Part]]] = [(message.role, message.parts) for message in turn]
    for role, parts in merge_turns(roles):
        match role:
            case "assistant":
                messages.append(_assistant(parts, thoughts))
            case "tool":
                messages.extend(_tool_message(part) for part in parts if isinstance(part, ToolResult))
            case _:
                messages.append({"role": "user", "content": _content(parts, blobs)})
    return messages


def _assistant(parts: list[Part], thoughts_field: str | None) -> dict[str, Any]:
    text = "\n\n".join(part.text for part in parts if isinstance(part, Text))
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text or EMPTY_TEXT}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    thoughts = "".join(part.text for part in parts if isinstance(part, Thinking))
    if thoughts_field is not None and (thoughts or calls):
        # Such a model refuses calls without the thoughts that led to them; another model may have made these.
        message[thoughts_field] = thoughts or EMPTY_TEXT
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function, **call.extra}


def _tool_message(result: ToolResult) -> dict[str, Any]:
    text = result.text if result.text.strip() else EMPTY_TEXT
    if result.is_error and not text.lower().startswith("error"):
        # This API has no field for it.
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": result.call_id, "content": text}


def _content(parts: list[Part], blobs: Mapping[str, bytes]) -> str | list[dict[str, Any]]:
    # Plain text where that is all: not every server takes a list.
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [block for part in parts if (block := _block(part, blobs))] or EMPTY_TEXT


def _block(part: Part, blobs: Mapping[str, bytes]) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Image():
            url = f"data:{part.media_type};base64,{attachment_base64(part, blobs)}"
            return {"type": "image_url", "image_url": {"url": url}}
        case Document(media_type="application/pdf"):
            data = f"data:{part.media_type};base64,{attachment_base64(part, blobs)}"
            return {"type": "file", "file": {"filename": part.name, "file_data": data}}
        case Document():
            return {"type": "text", "text": f"{part.name}:\n{attachment_text(part, blobs)}"}
        case _:
            return None
