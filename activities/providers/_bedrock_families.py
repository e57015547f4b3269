"""Families of models behind Bedrock, where Converse does not make them alike.

The table has what a request must differ in. What a model reads and takes otherwise stands in
`perdure/providers/capabilities.py`.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from perdure.messages import Message, Text, ToolResult
from perdure.model import ModelConfig
from perdure.providers import reject_setting


@dataclass(frozen=True, kw_only=True)
class Family:
    """Family of models. The defaults are those of a model that nobody knows, such as one behind an ARN."""

    pieces: tuple[str, ...] = ()
    """Pieces of a model's id, of which one must be in it."""
    thinking: Literal["claude", "nova", "effort", "none"] = "none"
    """Fields by which thinking is set: those of Claude, those of Nova, or `reasoning_effort` alone."""
    effort_in_config: bool = False
    """True: `outputConfig` takes the effort."""
    streams_tools: bool = True
    """False: with tools the model answers whole requests only."""
    result_status: bool = False
    """True: a tool's result may say that it is an error. Others read it in words."""


_UNKNOWN: Final = Family(effort_in_config=True, result_status=True)
_FAMILIES: Final = (
    Family(pieces=("anthropic.", "claude"), thinking="claude", effort_in_config=True, result_status=True),
    Family(pieces=("amazon.nova-2",), thinking="nova", result_status=True),
    Family(pieces=("amazon.nova",), result_status=True),
    Family(pieces=("openai.gpt-oss",), thinking="effort"),
    # Source: the table of features of Converse in Amazon's user guide.
    Family(pieces=("meta.llama", "mistral."), streams_tools=False),
    Family(pieces=("ai21.", "amazon.titan", "cohere.", "deepseek.", "qwen.", "writer.")),
)
_NOVA_EFFORTS: Final = ("low", "medium")
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def family_of(config: ModelConfig) -> Family:
    """Return the family of the config's model."""
    model = config.model.lower()
    return next((each for each in _FAMILIES if any(piece in model for piece in each.pieces)), _UNKNOWN)


def check_thinking(config: ModelConfig) -> None:
    """Check thinking and effort.

    Raises:
        DefinitionError: the model does not take them.

    """
    family = family_of(config)
    if config.thinking is not None and family.thinking in ("effort", "none"):
        advice = "set effort" if family.thinking == "effort" else "what a model needs may go into extra_body"
        reject_setting(config, "thinking", advice)
    if config.effort is None or family.effort_in_config:
        return
    if family.thinking == "none":
        reject_setting(config, "effort", "what a model needs may go into extra_body")
    if family.thinking == "nova" and config.effort not in _NOVA_EFFORTS:
        advice = 'such a reply has no bound of its length there; set "medium"'
        reject_setting(config, f"effort={config.effort!r}", advice)


def thinking_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of the request, beside those of Converse, that set thinking."""
    match family_of(config).thinking:
        case "claude":
            return _claude_fields(config)
        case "nova":
            return _nova_fields(config)
        case "effort" if config.effort is not None:
            return {"reasoning_effort": _EFFORTS[config.effort]}
        case _:
            return {}


def _claude_fields(config: ModelConfig) -> dict[str, Any]:
    if config.thinking is None:
        return {}
    if isinstance(config.thinking, int):
        return {"thinking": {"type": "enabled", "budget_tokens": config.thinking}}
    return {"thinking": {"type": "disabled" if config.thinking == "off" else "adaptive"}}


def _nova_fields(config: ModelConfig) -> dict[str, Any]:
    if config.thinking is None and config.effort is None:
        return {}
    if config.thinking == "off":
        return {"reasoningConfig": {"type": "disabled"}}
    # It knows no budget in tokens.
    return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": config.effort or "medium"}}


def is_streamed(config: ModelConfig, body: dict[str, Any], wanted: bool | None) -> bool:
    """Return whether the answer comes as a stream; `wanted` is the agent's own word, if any."""
    if wanted is not None:
        return wanted
    return "toolConfig" not in body or family_of(config).streams_tools


def error_in_words(message: Message) -> Message:
    """Return the message with errors of tools said in words, for models that know no status of a result."""
    if not any(result.is_error for result in message.tool_results):
        return message
    parts = [
        _in_words(part) if isinstance(part, ToolResult) and part.is_error else part for part in message.parts
    ]
    return message.model_copy(update={"parts": parts})


def _in_words(result: ToolResult) -> ToolResult:
    is_said = result.text.lower().startswith("error")
    content = result.content if is_said else [Text(text="Error:"), *result.content]
    return result.model_copy(update={"content": content, "is_error": False})
