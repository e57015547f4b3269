"""A conversation as the chat completions API takes it: values in, JSON out."""

import json
from typing import Any, Literal

from pydantic import Field

from perdure.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest

from .shared import (
    EMPTY,
    Options,
    attachment,
    attachment_base64,
    in_call_order,
    merged,
    read_options,
    refuse,
    sendable,
    unsupported,
)


class OpenAIOptions(Options):
    """What `ModelConfig.options` may hold for OpenAI and what speaks like it."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] | None = None
    """What the server calls the bound of a reply; None: the newer name for OpenAI, the older for others."""
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    seed: int | None = None


def checked(config: ModelConfig) -> OpenAIOptions:
    """The config's options; `DefinitionError` for what this API does not take."""
    if config.thinking not in (None, "off"):
        refuse(config, f"thinking={config.thinking!r}", 'set effort, or thinking="off"')
    if config.thinking == "off" and config.effort is not None:
        refuse(config, 'thinking="off" together with effort', "set one of them")
    return read_options(OpenAIOptions, config)


def body_of(request: ModelRequest, options: OpenAIOptions, provider: str) -> dict[str, Any]:
    """The JSON to send, but for `extra_body`, which is laid over it on the way."""
    config = request.config
    newer = "max_completion_tokens" if provider == "openai" else "max_tokens"
    named: dict[str, Any] = {
        options.max_tokens_field or newer: request.max_tokens,
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
        "messages": _messages(request),
        "stream": True,
        "stream_options": {"include_usage": True},
        **{key: value for key, value in named.items() if value is not None},
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
    choice = {"tool_choice": "none"} if request.tool_choice == "none" else {}
    return {"tools": tools, **choice, "parallel_tool_calls": options.parallel_tool_calls}


def _messages(request: ModelRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions.strip():
        messages.append({"role": "system", "content": request.instructions})
    said = in_call_order(request.messages)
    turns = (turn for message in said for turn in _turns(message, request))
    for role, parts in merged(turns):
        match role:
            case "assistant":
                messages.append(_assistant(parts))
            case "tool":
                messages.extend(_tool_message(part) for part in parts if isinstance(part, ToolResult))
            case _:
                messages.append({"role": "user", "content": _content(parts, request)})
    return messages


def _turns(message: Message, request: ModelRequest) -> list[tuple[str, list[Part]]]:
    """The message by roles of this API: results first, what they hold beside text as the user's."""
    parts = sendable(message, request.config)
    if message.role == "assistant":
        return [("assistant", parts)]
    results: list[Part] = [part for part in parts if isinstance(part, ToolResult)]
    shown: list[Part] = []
    for part in parts:
        shown.extend(_attached(part) if isinstance(part, ToolResult) else [part])
    turns = [("tool", results), ("user", shown)]
    return [turn for turn in turns if turn[1]] or [("user", [])]


def _attached(result: ToolResult) -> list[Part]:
    files: list[Part] = [part for part in result.content if not isinstance(part, Text)]
    return (
        [Text(text=f"Attached to the result of {result.name} ({result.call_id}):"), *files] if files else []
    )


def _assistant(parts: list[Part]) -> dict[str, Any]:
    text = "\n\n".join(part.text for part in parts if isinstance(part, Text))
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    if calls:
        return {"role": "assistant", "content": text or None, "tool_calls": calls}
    return {"role": "assistant", "content": text or EMPTY}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool_message(result: ToolResult) -> dict[str, Any]:
    text = result.text if result.text.strip() else EMPTY
    if result.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"  # this API has no other way to say so
    return {"role": "tool", "tool_call_id": result.call_id, "content": text}


def _content(parts: list[Part], request: ModelRequest) -> str | list[dict[str, Any]]:
    """A user's content: plain text where it is one, as not every server takes a list."""
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [block for part in parts if (block := _block(part, request))] or EMPTY


def _block(part: Part, request: ModelRequest) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Image():
            url = f"data:{part.media_type};base64,{attachment_base64(part, request.blobs)}"
            return {"type": "image_url", "image_url": {"url": url}}
        case Document(media_type="application/pdf"):
            data = f"data:{part.media_type};base64,{attachment_base64(part, request.blobs)}"
            return {"type": "file", "file": {"filename": part.name, "file_data": data}}
        case Document() if part.media_type.startswith("text/"):
            text = attachment(part, request.blobs).decode(errors="replace")
            return {"type": "text", "text": f"{part.name}:\n{text}"}
        case Document():
            raise unsupported(part, "chat completions")
        case _:
            return None
