"""A provider's reply while it arrives, the same for every adapter: blocks, cost, and how it ends."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from pydantic_core import from_json

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Opaque, Part, Text, Thinking, ToolCall, Usage, estimate_tokens
from perdure.model import ModelEvent, ModelRequest, ModelStop, Reply, TextDelta, ThinkingDelta
from perdure.texts import fix_surrogates

from .shared import estimate_input, one_line


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
    arguments = fix_surrogates(arguments)  # a character may have come in two halves, in two pieces
    try:
        value: Any = from_json(arguments, allow_inf_nan=False) if arguments.strip() else {}
    except ValueError as error:
        return _broken_call(call_id, name, arguments, f"the arguments are not valid JSON: {error}")
    if not isinstance(value, dict):
        return _broken_call(call_id, name, arguments, "the arguments are not a JSON object")
    return ToolCall(id=call_id, name=name, arguments=cast("dict[str, Any]", value))


def _broken_call(call_id: str, name: str, arguments: str, problem: str) -> ToolCall:
    return ToolCall(id=call_id, name=name, arguments={"_raw": arguments}, problem=problem)


_MOST_TOKENS = 10**12
"""No call reads or writes more; a larger count would be carried into sums and prices for ever."""


def credible(usage: Usage) -> Usage:
    """The usage, as a provider counted it.

    Raises:
        ValueError: no call can have used that much.

    """
    if usage.total_tokens > _MOST_TOKENS:
        raise ValueError("it counts more tokens than there are")
    return usage


_ABOUT_DATA = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)


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
        if not isinstance(piece, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a provider said it
            raise TypeError(f"a piece of {block.kind} is no text but a {type(piece).__name__}")
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
        config = self.request.config
        silence = f", or nothing of it for {config.read_timeout}" if config.read_timeout else ""
        return self.error("timeout", f"no complete answer within {config.timeout}{silence}")

    def unknown(self, error: Exception) -> ModelError:
        """The error for what nobody foresaw; its class is named so that it can be foreseen next time.

        Once the provider has begun to answer, an error about data is about what it said.
        """
        cls = type(error)
        if self.opened and isinstance(error, _ABOUT_DATA):
            return self.error("malformed_reply", f"the answer cannot be read: {cls.__qualname__}: {error}")
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
