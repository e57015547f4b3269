"""A reply while it arrives: its content blocks, its cost so far, and the errors that can end it.

An adapter opens the draft when the provider begins to answer. It appends each piece to its block, and notes
the provider's stop reason, usage and terminal mark. In the end it asks the draft for the `Reply`, or for the
error. Every error carries what the call has cost by then, because a cut call is paid for too.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from pydantic_core import from_json

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Opaque, Part, Text, Thinking, ToolCall, Usage
from perdure.model import ArgumentsDelta, ModelEvent, ModelRequest, ModelStop, Reply, TextDelta, ThinkingDelta
from perdure.texts import fix_surrogates

from .count import CallCount
from .failures import one_line

BlockKind = Literal["text", "thinking", "tool_call", "opaque"]

_MOST_TOKENS = 10**12
"""No call reads or writes more. A larger count would stay in sums and prices for ever."""

_DATA_ERRORS = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)
"""Errors that reading a reply of an unexpected shape raises."""


@dataclass
class Block:
    """A content block while it arrives."""

    kind: BlockKind
    pieces: list[str] = field(default_factory=list[str])
    """Pieces of the text, of the reasoning, or of the JSON of a call's arguments."""
    id: str = ""
    """Provider's id of a tool call. May stay empty: the run gives each call an id of its own."""
    name: str = ""
    """Name of the tool that is called."""
    signature: str | None = None
    """Provider's signature of the reasoning."""
    redacted: str | None = None
    """Reasoning that the provider sends encrypted, as base64."""
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    """Content of an opaque block: sent back to this provider as it is."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of a tool call that only the provider understands: sent back to the model as they are."""

    def part(self, provider: str) -> Part | None:
        """Return the finished part, or None for a text or thinking block without content."""
        text = "".join(self.pieces)
        match self.kind:
            case "text":
                return Text(text=text) if text else None
            case "thinking":
                shown = text or self.signature or self.redacted
                thinking = Thinking(text=text, signature=self.signature, redacted=self.redacted)
                return thinking if shown else None
            case "tool_call":
                call = parse_tool_call(self.id, self.name, text)
                return call.model_copy(update={"extra": self.extra}) if self.extra else call
            case "opaque":
                return Opaque(provider=provider, data=self.data)


def parse_tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """Return the call with its arguments parsed; arguments that are no JSON object become its `problem`."""
    # A character may have come in two halves, in two pieces.
    arguments = fix_surrogates(arguments)
    try:
        value: Any = from_json(arguments, allow_inf_nan=False) if arguments.strip() else {}
    except ValueError as error:
        return _broken_call(call_id, name, arguments, f"the arguments are not valid JSON: {error}")
    if not isinstance(value, dict):
        return _broken_call(call_id, name, arguments, "the arguments are not a JSON object")
    return ToolCall(id=call_id, name=name, arguments=cast("dict[str, Any]", value))


def _broken_call(call_id: str, name: str, arguments: str, problem: str) -> ToolCall:
    return ToolCall(id=call_id, name=name, arguments={"_raw": arguments}, problem=problem)


@dataclass
class ReplyDraft:
    """A reply while it arrives; it knows at any moment what the call has cost so far."""

    request: ModelRequest
    digest: str
    """Digest of what was sent, for `Reply.request_digest`."""
    opened: bool = False
    """True once the provider began to answer: from then on the call costs something."""
    request_id: str | None = None
    """Provider's id of the call, for its support and for our logs."""
    model: str = ""
    """Model that answers, as the provider names it."""
    stop: str | None = None
    """Provider's own stop reason, None until it is sent."""
    complete: bool = False
    """True once the provider's terminal mark was seen."""
    blocks: dict[int | str, Block] = field(default_factory=dict[int | str, Block])
    """Content blocks by the adapter's key, in the order of the reply."""
    counted: CallCount = field(init=False)
    """Running count of what the call costs."""

    def __post_init__(self) -> None:
        self.counted = CallCount(self.request)

    @property
    def usage(self) -> Usage | None:
        """Usage as the provider counted it, None until it is sent."""
        return self.counted.usage

    def open(self, request_id: str | None = None) -> None:
        """Note that the provider has begun to answer."""
        self.opened, self.request_id = True, request_id

    def block(self, key: int | str, kind: BlockKind) -> Block:
        """Return the block of that key; a new key begins a block of that kind."""
        return self.blocks.setdefault(key, Block(kind))

    def append(self, block: Block, piece: str) -> Iterable[ModelEvent]:
        """Append a piece to a block, and return the events to yield for it at once.

        Raises:
            TypeError: the piece is not text.

        """
        if not piece:
            return ()
        # Providers do send numbers and objects here. Joined later, they would fail far from their cause.
        if not isinstance(piece, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a piece of {block.kind} is no text but a {type(piece).__name__}")
        begins_call = block.kind == "tool_call" and not block.pieces
        block.pieces.append(piece)
        self.counted.write(piece, begins_call=begins_call)
        match block.kind:
            case "text":
                return (TextDelta(text=piece),)
            case "thinking":
                return (ThinkingDelta(text=piece),)
            case _:
                return (ArgumentsDelta(text=piece, begins=begins_call),)

    def add_call(self, name: str, arguments: Mapping[str, Any], call_id: str = "") -> None:
        """Add a tool call that came whole, behind the blocks so far."""
        block = self.block(f"call {len(self.blocks)}", "tool_call")
        block.id, block.name = call_id, name
        self.append(block, json.dumps(arguments))

    @property
    def has_calls(self) -> bool:
        """True when the reply calls a tool."""
        return any(block.kind == "tool_call" for block in self.blocks.values())

    def finish(self, stop: str, usage: Usage | None) -> None:
        """Note the provider's terminal mark: its stop reason, and its count of the whole reply if it sent one."""
        self.stop, self.complete = stop, True
        if usage is not None:
            self.count(usage, final=True)

    def count(self, usage: Usage, *, final: bool) -> None:
        """Note the provider's count of tokens; `final` when it counts the whole reply.

        Raises:
            ValueError: no call can have used that much.

        """
        if usage.total_tokens > _MOST_TOKENS:
            raise ValueError("it counts more tokens than there are")
        self.counted.count(usage, final=final)

    def cost(self) -> Usage | None:
        """Return the cost of the call so far, or None if the provider has not begun to answer.

        It is the provider's count where that is final. Else what is missing is estimated, and marked so.
        """
        return self.counted.cost() if self.opened else None

    def reply(self, stops: Mapping[str, ModelStop]) -> Reply:
        """Return the finished reply; `stops` translates the provider's stop reasons.

        Raises:
            ModelError: kind "bug" for a stop reason that is not in `stops`.

        """
        stop = stops.get(self.stop or "")
        if stop is None:
            # Guessing would end a run as finished that is not.
            raise self.error("bug", f"unknown stop reason {self.stop!r}")
        provider = self.request.config.provider
        found = [(block, part) for block in self.blocks.values() if (part := block.part(provider))]
        parts = [part for _, part in found]
        if stop in ("max_tokens", "context_overflow") and found:
            parts[-1] = _mark_cut(*found[-1])
        return Reply(
            parts=tuple(parts),
            stop=stop,
            usage=self.counted.cost(is_whole=True),
            model=self.model,
            request_id=self.request_id,
            request_digest=self.digest,
        )

    # -- the errors that can end the call

    def error(self, kind: ErrorKind, message: str, retry_after: timedelta | None = None) -> ModelError:
        """Return the error that ends this call, with the cost of the call so far."""
        text = f"{self.request.config.name}: {one_line(message)}"
        return ModelError(kind, text, retry_after=retry_after, request_id=self.request_id, usage=self.cost())

    def cut_error(self) -> ModelError:
        """Return the error for a stream that ended without the provider's terminal mark."""
        return self.error("stream_cut", "the stream ended before the provider's mark of completion")

    def timeout_error(self) -> ModelError:
        """Return the error for a call that took longer than its config allows."""
        config = self.request.config
        silence = f", or nothing of it for {config.read_timeout}" if config.read_timeout else ""
        return self.error("timeout", f"no complete answer within {config.timeout}{silence}")

    def connection_error(self, cause: object) -> ModelError:
        """Return the error for a connection that failed before the answer, or broke during it."""
        if self.opened:
            return self.error("stream_cut", f"the connection broke in the middle of the answer: {cause}")
        return self.error("connection", f"the provider was not reached: {cause}")

    def unreadable_error(self, cause: object) -> ModelError:
        """Return the error for an answer that cannot be parsed."""
        return self.error("malformed_reply", f"the answer cannot be read: {cause}")

    def unforeseen_error(self, error: Exception) -> ModelError:
        """Return the error for an exception that the adapter does not know; its class is in the message.

        Once the provider has begun to answer, an error about data is taken for a malformed reply.
        """
        cls = type(error)
        if self.opened and isinstance(error, _DATA_ERRORS):
            return self.unreadable_error(f"{cls.__qualname__}: {error}")
        return self.error("bug", f"unforeseen {cls.__module__}.{cls.__qualname__}: {error}")


def _mark_cut(block: Block, part: Part) -> Part:
    # A call that was cut may still parse, as `{}` for example. It must never be carried out.
    if not isinstance(part, ToolCall):
        return part
    problem = "the call was cut off by the limit of the reply's length"
    broken = _broken_call(part.id, part.name, "".join(block.pieces), problem)
    return broken.model_copy(update={"extra": part.extra}) if part.extra else broken
