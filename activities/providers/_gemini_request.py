"""Requests in the format of Gemini's own API: values in, JSON out."""

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from pydantic import Field, JsonValue

from perdure.messages import Document, Image, Opaque, Part, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, ModelRequest, ToolDefinition
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
    tools_to_list,
)
from perdure.providers.rendering import Turn

SIGNATURE: Final = "thoughtSignature"
"""Field of a part that carries the model's signed thoughts. It goes back with that part, unchanged."""

_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_LEVELS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_GENERATION: Final = re.compile(r"gemini-(\d+)")
_LEAST_BUDGET: Final = 128
"""Smallest budget for thinking of the models that always think, in tokens."""


class GeminiOptions(ProviderOptions):
    """Options of `ModelConfig.options` for Gemini. Objects in `extra_body` are merged into those of the request."""

    cached_content: str | None = None
    """Name of a cache that holds the beginning of the conversation: `cachedContents/...`."""
    safety_settings: list[dict[str, JsonValue]] = Field(default_factory=list[dict[str, JsonValue]])
    """Thresholds of its filters, as `{"category": ..., "threshold": ...}`."""
    seed: int | None = None


def read_config(config: ModelConfig) -> GeminiOptions:
    """Read the config's options, and check its settings.

    Raises:
        DefinitionError: an option or a setting that the model does not take.

    """
    if config.effort is not None and _generation(config) < 3:
        reject_setting(config, "effort", "set thinking to a budget in tokens")
    if isinstance(config.thinking, int) and config.effort is not None:
        reject_setting(config, "a budget for thinking together with effort", "set one of them")
    capabilities_of(config, "gemini")
    return read_options(GeminiOptions, config)


def build_body(request: ModelRequest, options: GeminiOptions) -> dict[str, Any]:
    """Return the request to send as plain values, without `extra_body`."""
    fields, turns = _fields_and_turns(request, options)
    return {**fields, "contents": [_content(turn, request.blobs) for turn in turns]}


def render_body(request: ModelRequest, options: GeminiOptions) -> Body:
    """Return the JSON of `build_body` with `extra_body` in it; what is kept of earlier requests is not made again."""
    fields, turns = _fields_and_turns(request, options)
    fields = merge_fields(fields, options.extra_body)

    def render(turn: Turn) -> list[dict[str, Any]]:
        return [_content(turn, request.blobs)]

    pieces = [render_turn(turn, "gemini", None, render) for turn in turns]
    return join_body(fields, None if "contents" in fields else "contents", pieces)


def _fields_and_turns(request: ModelRequest, options: GeminiOptions) -> tuple[dict[str, Any], list[Turn]]:
    """Return the fields of a request beside its contents, and the turns that its contents are made of."""
    # Thinking as it was asked for: here the calls of a turn carry its thoughts, whatever the turn began with.
    body: dict[str, Any] = {"generationConfig": _generation_config(request, options)}
    request = make_sendable(request, capabilities_of(request.config, "gemini"))
    if request.instructions.strip():
        body["systemInstruction"] = {"parts": [{"text": request.instructions}]}
    if tools := tools_to_list(request):
        mode = _MODES[request.tool_choice] if request.tools else "NONE"
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in tools]}]
        body["toolConfig"] = {"functionCallingConfig": {"mode": mode}}
    if options.cached_content is not None:
        body["cachedContent"] = options.cached_content
    if options.safety_settings:
        body["safetySettings"] = options.safety_settings
    return body, split_turns(request.messages)


def merge_fields(body: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the body with more fields; objects are merged, so that a field of `generationConfig` can be added."""
    merged = dict(body)
    for name, value in more.items():
        known = merged.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            value = merge_fields(cast("dict[str, Any]", known), cast("dict[str, Any]", value))  # noqa: PLW2901
        merged[name] = value
    return merged


def _generation(config: ModelConfig) -> int:
    # A name without a number, such as "gemini-flash-latest", is of the newest generation.
    found = _GENERATION.search(config.model)
    return int(found[1]) if found else 3


def _generation_config(request: ModelRequest, options: GeminiOptions) -> dict[str, Any]:
    config = request.config
    named: dict[str, Any] = {
        "temperature": config.temperature,
        "topP": config.top_p,
        "stopSequences": list(config.stop_sequences) or None,
        "seed": options.seed,
        "thinkingConfig": _thinking(request),
    }
    return {
        "maxOutputTokens": request.max_tokens,
        **{name: value for name, value in named.items() if value is not None},
    }


def _thinking(request: ModelRequest) -> dict[str, Any] | None:
    config = request.config
    if config.thinking is None and config.effort is None:
        return None
    if config.thinking == "off":
        return _least_thinking(config)
    thinking: dict[str, Any] = {"includeThoughts": True}
    if config.effort is not None:
        thinking["thinkingLevel"] = _LEVELS[config.effort]
    elif isinstance(config.thinking, int):
        # Thinking is part of the reply: a budget of the run may leave less for both.
        thinking["thinkingBudget"] = min(config.thinking, max(request.max_tokens - 1, _LEAST_BUDGET))
    elif _generation(config) < 3:
        thinking["thinkingBudget"] = -1
    return thinking


def _least_thinking(config: ModelConfig) -> dict[str, Any]:
    # Only the smaller models of the second generation can be kept from thinking at all.
    if _generation(config) < 3:
        return {"thinkingBudget": _LEAST_BUDGET if "pro" in config.model else 0}
    return {"thinkingLevel": "low" if "pro" in config.model else "minimal"}


def _declaration(tool: ToolDefinition) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    # An object without properties is refused; a function without parameters is not.
    has_parameters = bool(tool.input_schema.get("properties"))
    parameters = {"parametersJsonSchema": tool.input_schema} if has_parameters else {}
    return {"name": tool.name, **described, **parameters}


def _content(turn: Turn, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of a turn of a sendable request; it depends on nothing else."""
    if turn[0].role == "assistant":
        parts = [block for message in turn for block in _model_parts(message.parts, blobs)]
        return {"role": "model", "parts": parts or [{"text": EMPTY_TEXT}]}
    parts = [block for message in turn for part in message.parts for block in _blocks(part, blobs)]
    return {"role": "user", "parts": parts or [{"text": EMPTY_TEXT}]}


def _model_parts(parts: list[Part], blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the parts of a reply, each with the signature that it came with.

    A reply keeps the signature of a text in a thought without words before it, as `gemini.py` has made it.
    """
    blocks: list[dict[str, Any]] = []
    signature: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Thinking):
            # Words of thoughts are for people: only signatures go back.
            signature = {SIGNATURE: part.signature} if part.signature else {}
            continue
        found = _blocks(part, blobs)
        if found and signature and isinstance(part, Text):
            found[0] |= signature
        blocks += found
        signature = {}
    # Its text was blank.
    return [*blocks, {"text": "", **signature}] if signature else blocks


def _blocks(part: Part, blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    match part:
        case Text(text=text):
            return [{"text": text}]
        case Image() | Document():
            return [_attachment(part, blobs)]
        case Opaque(data=data):
            return [data]
        case ToolCall(id=id_, name=name, arguments=arguments):
            return [{"functionCall": {"id": id_, "name": name, "args": arguments}, **part.extra}]
        case ToolResult():
            return [_response(part)]
        case Thinking():
            return []


def _response(result: ToolResult) -> dict[str, Any]:
    text = result.text if result.text.strip() else EMPTY_TEXT
    response = {"error" if result.is_error else "output": text}
    return {"functionResponse": {"id": result.call_id, "name": result.name, "response": response}}


def _attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    if isinstance(part, Image) or part.media_type == "application/pdf":
        return {"inlineData": {"mimeType": part.media_type, "data": attachment_base64(part, blobs)}}
    return {"text": f"{part.name}:\n{attachment_text(part, blobs)}"}
