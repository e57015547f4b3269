"""The public interface for model providers, and the adapters that are built in.

A provider is an object with the two methods of `Model`: `stream` and `check`. A worker serves it under a
name: `PerdurePlugin(models={"mine": MyModel()})`, or `models = {"mine": MyModel()}` in an agent file. Agents
then name its models as "mine:anything". The page docs/providers.md shows how to write one.

`ReplyDraft` folds a provider's stream into a `Reply`. The functions are the rules that all adapters share.
The built-in adapters use this interface too.

This module stays lazy, as `perdure` does: importing it imports no provider's library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.activities.providers.anthropic import AnthropicModel
    from perdure.activities.providers.azure import AzureModel
    from perdure.activities.providers.bedrock import BedrockModel
    from perdure.activities.providers.gemini import GeminiModel
    from perdure.activities.providers.http import HttpModel
    from perdure.activities.providers.openai import OpenAIModel
    from perdure.activities.providers.responses import ResponsesModel
    from perdure.errors import DefinitionError, ErrorKind, ModelError
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
        Usage,
    )
    from perdure.model import (
        ArgumentsDelta,
        Model,
        ModelConfig,
        ModelEvent,
        ModelRequest,
        ModelStop,
        Reply,
        TextDelta,
        ThinkingDelta,
        ToolDefinition,
        UsageSoFar,
        digest,
    )
    from perdure.providers.capabilities import Capabilities, capabilities_of
    from perdure.providers.conversation import (
        EMPTY_TEXT,
        attachment_base64,
        attachment_bytes,
        attachment_text,
        estimate_input_tokens,
        merge_turns,
        put_results_after_calls,
        put_results_first,
        sendable_parts,
        sendable_text,
        tools_to_list,
        unsupported_media_error,
        unsupported_media_text,
    )
    from perdure.providers.count import CallCount, read_count
    from perdure.providers.deadline import CallDeadline
    from perdure.providers.draft import Block, ReplyDraft, parse_tool_call
    from perdure.providers.events import read_pieces
    from perdure.providers.failures import kind_of_status, one_line, parse_retry_after
    from perdure.providers.options import ProviderOptions, read_options, reject_setting
    from perdure.providers.refusals import ProviderError, kind_of_error, read_error
    from perdure.providers.rendering import (
        Body,
        Piece,
        encode_json,
        join_body,
        marked_turns,
        render_turn,
        split_turns,
    )
    from perdure.providers.schemas import problem_with_tools
    from perdure.providers.sendable import make_sendable
    from perdure.providers.stops import MODEL_REFUSAL
    from perdure.providers.wordings import is_context_overflow

_EXPORTS = {
    "perdure.activities.providers.anthropic": ("AnthropicModel",),
    "perdure.activities.providers.azure": ("AzureModel",),
    "perdure.activities.providers.bedrock": ("BedrockModel",),
    "perdure.activities.providers.gemini": ("GeminiModel",),
    "perdure.activities.providers.http": ("HttpModel",),
    "perdure.activities.providers.openai": ("OpenAIModel",),
    "perdure.activities.providers.responses": ("ResponsesModel",),
    "perdure.errors": ("DefinitionError", "ErrorKind", "ModelError"),
    "perdure.messages": (
        *("Document", "Image", "Message", "Opaque", "Part", "Text", "Thinking", "ToolCall", "ToolResult"),
        "Usage",
    ),
    "perdure.model": (
        *("ArgumentsDelta", "Model", "ModelConfig", "ModelEvent", "ModelRequest", "ModelStop", "Reply"),
        *("TextDelta", "ThinkingDelta", "ToolDefinition", "UsageSoFar", "digest"),
    ),
    "perdure.providers.capabilities": ("Capabilities", "capabilities_of"),
    "perdure.providers.conversation": (
        *("EMPTY_TEXT", "attachment_base64", "attachment_bytes", "attachment_text", "estimate_input_tokens"),
        "merge_turns",
        *("put_results_after_calls", "put_results_first", "sendable_parts", "sendable_text"),
        *("tools_to_list", "unsupported_media_error", "unsupported_media_text"),
    ),
    "perdure.providers.count": ("CallCount", "read_count"),
    "perdure.providers.deadline": ("CallDeadline",),
    "perdure.providers.draft": ("Block", "ReplyDraft", "parse_tool_call"),
    "perdure.providers.events": ("read_pieces",),
    "perdure.providers.failures": ("kind_of_status", "one_line", "parse_retry_after"),
    "perdure.providers.options": ("ProviderOptions", "read_options", "reject_setting"),
    "perdure.providers.rendering": (
        *("Body", "Piece", "encode_json", "join_body", "marked_turns", "render_turn", "split_turns"),
    ),
    "perdure.providers.schemas": ("problem_with_tools",),
    "perdure.providers.sendable": ("make_sendable",),
    "perdure.providers.refusals": ("ProviderError", "kind_of_error", "read_error"),
    "perdure.providers.stops": ("MODEL_REFUSAL",),
    "perdure.providers.wordings": ("is_context_overflow",),
}
_HOME = {name: home for home, names in _EXPORTS.items() for name in names}

__all__ = [
    "EMPTY_TEXT",
    "MODEL_REFUSAL",
    "AnthropicModel",
    "ArgumentsDelta",
    "AzureModel",
    "BedrockModel",
    "Block",
    "Body",
    "CallCount",
    "CallDeadline",
    "Capabilities",
    "DefinitionError",
    "Document",
    "ErrorKind",
    "GeminiModel",
    "HttpModel",
    "Image",
    "Message",
    "Model",
    "ModelConfig",
    "ModelError",
    "ModelEvent",
    "ModelRequest",
    "ModelStop",
    "Opaque",
    "OpenAIModel",
    "Part",
    "Piece",
    "ProviderError",
    "ProviderOptions",
    "Reply",
    "ReplyDraft",
    "ResponsesModel",
    "Text",
    "TextDelta",
    "Thinking",
    "ThinkingDelta",
    "ToolCall",
    "ToolDefinition",
    "ToolResult",
    "Usage",
    "UsageSoFar",
    "attachment_base64",
    "attachment_bytes",
    "attachment_text",
    "capabilities_of",
    "digest",
    "encode_json",
    "estimate_input_tokens",
    "is_context_overflow",
    "join_body",
    "kind_of_error",
    "kind_of_status",
    "make_sendable",
    "marked_turns",
    "merge_turns",
    "one_line",
    "parse_retry_after",
    "parse_tool_call",
    "problem_with_tools",
    "put_results_after_calls",
    "put_results_first",
    "read_count",
    "read_error",
    "read_options",
    "read_pieces",
    "reject_setting",
    "render_turn",
    "sendable_parts",
    "sendable_text",
    "split_turns",
    "tools_to_list",
    "unsupported_media_error",
    "unsupported_media_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'perdure.providers' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    # The next access finds it without coming here.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
