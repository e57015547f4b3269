"""The models a worker knows by name, and the rules that all provider adapters share.

Importing this module imports no provider's library: a worker pays only for those it asks.
"""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, ValidationError

from perdure.errors import DefinitionError, ErrorKind, ModelError
from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    Text,
    Thinking,
    ToolResult,
    estimate_tokens,
)
from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest, ToolDefinition
from perdure.settings import Settings

T = TypeVar("T")
B = TypeVar("B")
O = TypeVar("O", bound="Options")  # noqa: E741 - one letter, as for every type variable here

EMPTY = "(empty)"
"""Stands where a provider demands content and there is none."""

ATTACHMENT_TOKENS = 1_600
"""A rough count for an image or a page: what the larger providers charge for a full-size picture."""

_OVERFLOW = (
    "prompt is too long",
    "input is too long",
    "input length exceeds",
    "input and output tokens exceed",
    "exceed context limit",
    "exceed your context limit",
    "too many total text bytes",
    "maximum context length",
    "exceeds the available context size",
    "context_length_exceeded",
)

_STATUS: dict[int, ErrorKind] = {
    401: "authentication",
    402: "payment",
    403: "authentication",
    404: "not_found",
    408: "timeout",
    409: "overloaded",
    413: "too_large",
    424: "overloaded",
    429: "rate_limited",
    431: "too_large",
    499: "bug",
    501: "bad_request",
    504: "timeout",
}


# -- the models by name


class LazyModel:
    """A model whose library is imported by the first call that needs it."""

    def __init__(self, module: str, name: str, **settings: Any) -> None:
        self._module, self._name, self._settings = module, name, settings
        self._made: Model | None = None

    @property
    def _model(self) -> Model:
        if self._made is None:
            made: Model = getattr(import_module(self._module, __package__), self._name)(**self._settings)
            self._made = made
        return self._made

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """As the model itself does."""
        return self._model.stream(request)

    def check(self, config: ModelConfig) -> None:
        """As the model itself does."""
        self._model.check(config)


def default_models(settings: Settings | None = None) -> dict[str, Model]:
    """The providers shipped with this package, by the name before the colon of a model's name.

    What the settings leave open, each takes from its own environment variables.
    """
    given = settings or Settings.model_construct()
    return {
        "anthropic": LazyModel(".anthropic", "AnthropicModel", api_key=_revealed(given.anthropic_api_key)),
        "bedrock": LazyModel(".bedrock", "BedrockModel", region=given.bedrock_region),
        "openai": LazyModel(
            ".openai",
            "OpenAIModel",
            api_key=_revealed(given.openai_api_key),
            base_url=given.openai_base_url,
        ),
        "ollama": LazyModel(".openai", "OpenAIModel", provider="ollama", base_url=given.ollama_base_url),
        "vllm": LazyModel(".openai", "OpenAIModel", provider="vllm"),
    }


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


# -- settings


class Options(BaseModel):
    """What `ModelConfig.options` may hold for every provider; adapters add their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str | None = None
    """Where to ask instead of the provider's own address."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Sent along as it is, for what has no setting here."""


def read_options(kind: type[O], config: ModelConfig) -> O:
    """The config's options, validated.

    Raises:
        DefinitionError: an option the provider does not have, or a value it cannot have.

    """
    unknown = sorted(set(config.options) - set(kind.model_fields))
    if unknown:
        known = ", ".join(sorted(kind.model_fields))
        raise DefinitionError(f"{config.name}: unknown option {unknown[0]!r}; the known ones are {known}")
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DefinitionError(f"{config.name}: option {where!r}: {first['msg']}") from None


def refuse(config: ModelConfig, setting: str, advice: str) -> NoReturn:
    """Raise the error for a setting that a provider does not take."""
    raise DefinitionError(f"{config.name}: {setting} is not taken by this provider; {advice}")


# -- errors


def kind_of_status(status: int) -> ErrorKind:
    """What an HTTP status means where the provider says nothing more precise."""
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500:
        return "overloaded"
    return "bad_request" if 400 <= status < 500 else "bug"


def is_overflow(text: str) -> bool:
    """True for the words providers use when a conversation does not fit; few send a code."""
    return any(words in text.lower() for words in _OVERFLOW)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> timedelta | None:
    """The delay a provider asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.

    `headers` must find lower-case names. A date in the past is no delay.
    """
    seconds = _number(headers.get("retry-after-ms"), scale=0.001)
    if seconds is None:
        seconds = _number(headers.get("retry-after"))
    if seconds is not None:
        return timedelta(seconds=seconds)
    return _until(headers.get("retry-after"), now or datetime.now(UTC))


def _number(text: str | None, scale: float = 1.0) -> float | None:
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    # Beyond this a timedelta overflows; "nan" and "inf" are numbers to float().
    return max(0.0, min(value, 1e9)) if math.isfinite(value) else None


def _until(text: str | None, now: datetime) -> timedelta | None:
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return max(timedelta(), date.replace(tzinfo=date.tzinfo or UTC) - now)


def one_line(text: object, limit: int = 600) -> str:
    """The text on one line and bounded: error messages end up in histories and lists."""
    return " ".join(str(text).split())[:limit]


async def within(deadline: float, awaitable: Awaitable[T]) -> T:
    """The awaitable's result; `TimeoutError` once the loop's clock passes the deadline.

    The timeout is entered and left again for each read: one held open across a `yield` would
    cancel the consumer in the middle of its own work.
    """
    async with asyncio.timeout_at(deadline):
        result = await awaitable
    if asyncio.get_running_loop().time() > deadline:
        raise TimeoutError  # what is always ready never waits, and a timeout only ends a wait
    return result


# -- requests


def sendable(message: Message, config: ModelConfig) -> list[Part]:
    """The parts this model may see: reasoning is bound to a model, opaque blocks to a provider."""
    same_model = message.meta is None or message.meta.model == config.name

    def fits(part: Part) -> bool:
        match part:
            case Thinking():
                return same_model
            case Opaque(provider=provider):
                return provider == config.provider
            case Text(text=text):
                return bool(text.strip())  # providers refuse blank text, and some models produce it
            case _:
                return True

    return [part for part in message.parts if fits(part)]


def in_call_order(messages: Iterable[Message]) -> list[Message]:
    """The messages with results directly after their calls, whatever was said in between."""
    ordered: list[Message] = []
    for message in messages:
        at = len(ordered)
        if message.role == "tool":
            while at and ordered[at - 1].role == "user":
                at -= 1
        # Without an assistant's message before them the results stay where they are.
        ordered.insert(at or len(ordered), message)
    return ordered


def merged(turns: Iterable[tuple[str, list[B]]]) -> list[tuple[str, list[B]]]:
    """The turns with neighbours of one role joined, as providers want user and assistant to alternate."""
    joined: list[tuple[str, list[B]]] = []
    for role, blocks in turns:
        if joined and joined[-1][0] == role:
            joined[-1][1].extend(blocks)
        else:
            joined.append((role, list(blocks)))
    return joined


def results_first(parts: list[Part]) -> list[Part]:
    """Tool results before anything else: they must follow their calls at once."""
    return sorted(parts, key=lambda part: not isinstance(part, ToolResult))


def listed_tools(request: ModelRequest) -> tuple[ToolDefinition, ...]:
    """The tools to list: those offered, or bare ones for the calls the conversation already holds.

    Some providers refuse messages with tool calls when no tools are listed.
    """
    if request.tools:
        return request.tools
    names = dict.fromkeys(call.name for message in request.messages for call in message.tool_calls)
    return tuple(ToolDefinition(name=n, description="", input_schema={"type": "object"}) for n in names)


def attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> bytes:
    """The bytes of an image or a document.

    Raises:
        ModelError: kind "bug" when its blob was not brought along, "bad_request" when it has no bytes.

    """
    if part.blob is not None:
        if part.blob not in blobs:
            raise ModelError("bug", f"the request names the blob {part.blob!r} but does not bring its bytes")
        return blobs[part.blob]
    try:
        return base64.b64decode(part.data or "", validate=True)
    except ValueError:
        raise ModelError("bad_request", f"the data of a {part.kind} is not valid base64") from None


def attachment_base64(part: Image | Document, blobs: Mapping[str, bytes]) -> str:
    """The bytes of an image or a document, as base64 text."""
    return base64.b64encode(attachment(part, blobs)).decode()


def unsupported(part: Image | Document, provider: str) -> ModelError:
    """The error for a media type that a provider does not read."""
    return ModelError("bad_request", f"{provider} does not read {part.kind}s of type {part.media_type!r}")


def estimate_input(request: ModelRequest) -> int:
    """About how many tokens the request is, for calls whose provider did not count."""
    size = len(request.instructions) + sum(len(tool.model_dump_json()) for tool in request.tools)
    attachments = 0
    for message in request.messages:
        for part in message.parts:
            for piece in part.content if isinstance(part, ToolResult) else [part]:
                if isinstance(piece, Image | Document):
                    attachments += 1
                else:
                    size += len(piece.model_dump_json().encode())
    return estimate_tokens(size) + attachments * ATTACHMENT_TOKENS
