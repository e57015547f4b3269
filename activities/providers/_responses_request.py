"""Requests in the format of OpenAI's Responses API: values in, JSON out."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, cast

from pydantic import Field

from perdure.messages import Document, Image, Message, Opaque, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest
from perdure.providers import (
    EMPTY_TEXT,
    Body,
    ProviderOptions,
    attachment_base64,
    attachment_text,
    capabilities_of,
    join_body,
    make_sendable,
    read_options,
    reject_setting,
    render_turn,
    split_turns,
)
from perdure.providers.rendering import Turn

_WITHOUT_REASONING: Final = ("gpt-3", "gpt-4", "chatgpt-4")
"""Beginnings of the names of models that do not reason, and refuse to encrypt what they do not have."""


class ResponsesOptions(ProviderOptions):
    """Options of `ModelConfig.options` for the Responses API."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    encrypted_reasoning: bool | None = None
    """Ask for the reasoning in encrypted form, and send it back. None: of models that reason."""
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool = False
    """Let the provider keep the answer. The transcript never depends on it."""


def read_config(config: ModelConfig) -> ResponsesOptions:
    """Read the config's options, and check its settings.

    Raises:
        DefinitionError: an option or a setting that the API does not take.

    """
    if isinstance(config.thinking, int):
        reject_setting(config, "a budget for thinking", 'set effort, or thinking="off"')
    if config.thinking == "off" and config.effort is not None:
        reject_setting(config, 'thinking="off" together with effort', "set one of them")
    if config.stop_sequences:
        reject_setting(config, "stop_sequences", "leave them out, or use the same model as openai:...")
    capabilities_of(config, "responses")
    return read_options(ResponsesOptions, config)


def build_body(request: ModelRequest, options: ResponsesOptions) -> dict[str, Any]:
    """Return the request to send as plain values, without `extra_body`."""
    request = make_sendable(request, capabilities_of(request.config, "responses"))
    return {**_fields(request, options), "input": _items(request.messages, request.blobs)}


def render_body(request: ModelRequest, options: ResponsesOptions) -> Body:
    """Return the JSON of `build_body` with `extra_body` in it; what is kept of earlier requests is not made again."""
    request = make_sendable(request, capabilities_of(request.config, "responses"))

    def render(turn: Turn) -> list[dict[str, Any]]:
        return _items(turn, request.blobs)

    pieces = [render_turn(turn, "responses", None, render) for turn in split_turns(request.messages)]
    return join_body(_fields(request, options), "input", pieces, options.extra_body)


def _fields(request: ModelRequest, options: ResponsesOptions) -> dict[str, Any]:
    """Return the fields of a sendable request beside its input."""
    config = request.config
    optional: dict[str, Any] = {
        "instructions": request.instructions if request.instructions.strip() else None,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "reasoning": _reasoning(config, options),
        "include": ["reasoning.encrypted_content"] if _encrypts(config, options) else None,
        "prompt_cache_key": options.prompt_cache_key,
        "service_tier": options.service_tier,
        **_tools(request, options),
    }
    return {
        "model": config.model,
        "max_output_tokens": request.max_tokens,
        "store": options.store,
        "stream": True,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _encrypts(config: ModelConfig, options: ResponsesOptions) -> bool:
    if options.encrypted_reasoning is not None:
        return options.encrypted_reasoning
    return config.thinking != "off" and not config.model.startswith(_WITHOUT_REASONING)


def _reasoning(config: ModelConfig, options: ResponsesOptions) -> dict[str, Any] | None:
    effort = "none" if config.thinking == "off" else config.effort
    summary = options.reasoning_summary or ("auto" if config.thinking == "adaptive" else None)
    named = {"effort": effort, "summary": summary}
    return {name: value for name, value in named.items() if value is not None} or None


def _tools(request: ModelRequest, options: ResponsesOptions) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": False,  # by default the API holds schemas to a subset, and refuses the others
        }
        for tool in request.tools
    ]
    choice = {} if request.tool_choice == "auto" else {"tool_choice": request.tool_choice}
    return {"tools": tools, **choice, "parallel_tool_calls": options.parallel_tool_calls}


def _items(turn: Turn, blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the items of messages of a sendable request."""
    return [item for message in turn for item in _items_of(message, blobs)]


def _items_of(message: Message, blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return a sendable message as items; they depend on nothing else."""
    if message.role == "assistant":
        return _reply_items(message.parts) or [{"role": "assistant", "content": EMPTY_TEXT}]
    if message.role == "tool":
        return [_output(part, blobs) for part in message.parts if isinstance(part, ToolResult)]
    content = [_content(part, blobs) for part in message.parts if isinstance(part, Text | Image | Document)]
    return [{"role": "user", "content": content or EMPTY_TEXT}]


def _reply_items(parts: list[Part]) -> list[dict[str, Any]]:
    items = [item for part in parts for item in _reply_item(part)]
    # The API refuses a thought without the answer or the call that followed it.
    while items and items[-1].get("type") == "reasoning":
        items.pop()
    return items


def _reply_item(part: Part) -> Iterator[dict[str, Any]]:
    match part:
        case Text(text=text):
            yield {"role": "assistant", "content": text}
        case Thinking(text=text, signature=str(signature)):
            if item := _reasoning_item(text, signature):
                yield item
        case Opaque(data=data):
            yield data
        case ToolCall(id=id_, name=name):
            arguments = json.dumps(part.arguments, ensure_ascii=False)
            yield {"type": "function_call", "call_id": id_, "name": name, "arguments": arguments}
        case _:
            # A thought without its encrypted form: the provider could only find it on its own side.
            pass


def sign(item: dict[str, Any]) -> str | None:
    """Return what of a reasoning item is kept as the signature of its thought; None where it cannot be sent back."""
    if not item.get("encrypted_content"):
        return None
    return json.dumps({"id": item.get("id"), "encrypted_content": item["encrypted_content"]})


def _reasoning_item(text: str, signature: str) -> dict[str, Any] | None:
    try:
        signed: object = json.loads(signature)
    except ValueError:
        return None
    if not isinstance(signed, dict):
        return None
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"type": "reasoning", **cast("dict[str, Any]", signed), "summary": summary}


def _output(result: ToolResult, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    text = result.text if result.text.strip() else EMPTY_TEXT
    if result.is_error and not text.lower().startswith("error"):
        # This API has no field for it.
        text = f"Error: {text}"
    files = [_content(part, blobs) for part in result.content if not isinstance(part, Text)]
    output = [{"type": "input_text", "text": text}, *files] if files else text
    return {"type": "function_call_output", "call_id": result.call_id, "output": output}


def _content(part: Text | Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    match part:
        case Text(text=text):
            return {"type": "input_text", "text": text}
        case Image():
            url = f"data:{part.media_type};base64,{attachment_base64(part, blobs)}"
            return {"type": "input_image", "image_url": url}
        case Document(media_type="application/pdf"):
            data = f"data:{part.media_type};base64,{attachment_base64(part, blobs)}"
            return {"type": "input_file", "filename": part.name, "file_data": data}
        case Document():
            return {"type": "input_text", "text": f"{part.name}:\n{attachment_text(part, blobs)}"}
