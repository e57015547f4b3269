"""The models a worker knows by name, and the rules that all provider adapters share.

Importing this module imports no provider's library: a worker pays only for those it asks.
"""

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Literal, NoReturn, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

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
    estimate_tokens,
)
from perdure.model import (
    Model,
    ModelConfig,
    ModelEvent,
    ModelRequest,
    ModelStop,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolDefinition,
)

T = TypeVar("T")
B = TypeVar("B")
O = TypeVar("O", bound="Options")  # noqa: E741 - one letter, as for every type variable here

EMPTY = "(empty)"
"""Stands where a provider insists on content and there is none."""

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


def default_models() -> dict[str, Model]:
    """The providers shipped with this package, by the name before the colon of a model's name."""
    return {
        "anthropic": LazyModel(".anthropic", "AnthropicModel"),
        "bedrock": LazyModel(".bedrock", "BedrockModel"),
        "openai": LazyModel(".openai", "OpenAIModel"),
        "ollama": LazyModel(".openai", "OpenAIModel", provider="ollama"),
        "vllm": LazyModel(".openai", "OpenAIModel", provider="vllm"),
    }


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
        return await awaitable


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


# -- replies


@dataclass
class Block:
    """One content block while it arrives."""

    kind: Literal["text", "thinking", "tool_call", "opaque"]
    pieces: list[str] = field(default_factory=list[str])
    """Text, reasoning, or the JSON of the arguments."""
    id: str = ""
    name: str = ""
    signature: str | None = None
    redacted: str | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    def part(self, provider: str) -> Part | None:
        """The finished part; None for text that never came."""
        text = "".join(self.pieces)
        match self.kind:
            case "text":
                return Text(text=text) if text else None
            case "thinking":
                shown = text or self.signature or self.redacted
                thinking = Thinking(text=text, signature=self.signature, redacted=self.redacted)
                return thinking if shown else None
            case "tool_call":
                return tool_call(self.id, self.name, text)
            case "opaque":
                return Opaque(provider=provider, data=self.data)


def tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """The call with its arguments parsed; what is not a JSON object becomes a `problem`."""
    try:
        value: Any = json.loads(arguments) if arguments.strip() else {}
    except ValueError as error:
        return _broken_call(call_id, name, arguments, f"the arguments are not valid JSON: {error}")
    if not isinstance(value, dict):
        return _broken_call(call_id, name, arguments, "the arguments are not a JSON object")
    return ToolCall(id=call_id, name=name, arguments=cast("dict[str, Any]", value))


def _broken_call(call_id: str, name: str, arguments: str, problem: str) -> ToolCall:
    return ToolCall(id=call_id, name=name, arguments={"_raw": arguments}, problem=problem)


@dataclass
class Draft:
    """A reply while it arrives: at any moment it can say what the call has cost so far."""

    request: ModelRequest
    digest: str
    opened: bool = False
    """True once the provider began to answer: from then on the call costs something."""
    request_id: str | None = None
    model: str = ""
    stop: str | None = None
    """The provider's own word for why it stopped, None until it said so."""
    ended: bool = False
    """True once the provider's terminal mark was seen."""
    usage: Usage | None = None
    """As the provider counted."""
    usage_final: bool = False
    blocks: dict[int | str, Block] = field(default_factory=dict[int | str, Block])

    def open(self, request_id: str | None) -> None:
        """Note that the answer has begun."""
        self.opened, self.request_id = True, request_id

    def block(self, key: int | str, kind: Literal["text", "thinking", "tool_call", "opaque"]) -> Block:
        """The block of that key, begun if it is new."""
        return self.blocks.setdefault(key, Block(kind))

    def add(self, block: Block, piece: str) -> Iterable[ModelEvent]:
        """Append a piece to a block; yields what of it is to be shown at once."""
        if not piece:
            return ()
        block.pieces.append(piece)
        match block.kind:
            case "text":
                return (TextDelta(text=piece),)
            case "thinking":
                return (ThinkingDelta(text=piece),)
            case _:
                return ()

    def cost(self) -> Usage | None:
        """What the call has cost: the provider's count when complete, else partly estimated."""
        if not self.opened:
            return None
        if self.usage is not None and self.usage_final:
            return self.usage
        known = self.usage or Usage(input_tokens=estimate_input(self.request))
        written = sum(len(piece.encode()) for block in self.blocks.values() for piece in block.pieces)
        output = max(known.output_tokens, estimate_tokens(written))
        return known.model_copy(update={"output_tokens": output, "estimated": True})

    def error(self, kind: ErrorKind, message: str, retry_after: timedelta | None = None) -> ModelError:
        """The error that ends this call, with what it has cost."""
        text = f"{self.request.config.name}: {one_line(message)}"
        return ModelError(kind, text, retry_after=retry_after, request_id=self.request_id, usage=self.cost())

    def cut(self) -> ModelError:
        """The error for a stream that ended without the provider's terminal mark."""
        return self.error("stream_cut", "the stream ended before the provider's mark of completion")

    def timed_out(self) -> ModelError:
        """The error for a call that took longer than its config allows."""
        return self.error("timeout", f"no complete answer within {self.request.config.timeout}")

    def unknown(self, error: Exception) -> ModelError:
        """The error for what nobody foresaw; its class is named so that it can be foreseen next time."""
        cls = type(error)
        return self.error("bug", f"unforeseen {cls.__module__}.{cls.__qualname__}: {error}")

    def reply(self, stops: Mapping[str, ModelStop]) -> Reply:
        """The finished answer.

        Raises:
            ModelError: kind "bug" for a stop reason that is not in `stops`.

        """
        stop = stops.get(self.stop or "")
        if stop is None:
            raise self.error("bug", f"unknown stop reason {self.stop!r}")
        provider = self.request.config.provider
        found = [(block, part) for block in self.blocks.values() if (part := block.part(provider))]
        parts = [part for _, part in found]
        if stop in ("max_tokens", "context_overflow") and found:
            parts[-1] = _spoilt(*found[-1])
        return Reply(
            parts=tuple(parts),
            stop=stop,
            usage=self.cost() or Usage(),
            model=self.model,
            request_id=self.request_id,
            request_digest=self.digest,
        )


def _spoilt(block: Block, part: Part) -> Part:
    """A call that was cut may still parse, as `{}` for example: it must never be carried out."""
    if not isinstance(part, ToolCall):
        return part
    problem = "the call was cut off by the limit of the reply's length"
    return _broken_call(part.id, part.name, "".join(block.pieces), problem)
