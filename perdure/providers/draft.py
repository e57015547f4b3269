"""A reply while it arrives: its content blocks, its cost so far, and the errors that can end it.

An adapter opens the draft when the provider begins to answer. It appends each piece to its block, and notes
the provider's stop reason, usage and terminal mark. In the end it asks the draft for the `Reply`, or for the
error. Every error carries what the call has cost by then, because a cut call is paid for too.

Rules for what servers really send
1. A start begins a block, also under a key that another block had. A piece belongs to the newest open block of its key
   and kind; text or reasoning without any begins one.
2. Arguments without a call that began are no arguments: the answer cannot be read.
3. Two calls are one only if they share id, name and arguments. A call without an id is told apart by its name and by
   arguments that are whole.
4. Arguments may come as JSON text, in pieces or at once, or as a value.
5. A stop reason that nobody knows is no end that a run may rely on: the call is made again.
6. A count that makes no sense is estimated, and costs no answer.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, cast

from pydantic_core import from_json, to_json

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Opaque, Part, Text, Thinking, ToolCall, Usage
from perdure.model import ArgumentsDelta, ModelEvent, ModelRequest, ModelStop, Reply, TextDelta, ThinkingDelta
from perdure.texts import fix_surrogates

from .count import CallCount
from .failures import one_line, parse_retry_after
from .refusals import kind_of_error, read_error
from .stops import MODEL_REFUSAL, broken_stop, model_stop

BlockKind = Literal["text", "thinking", "tool_call", "opaque"]

_MOST_DEPTH = 8
"""Depth of objects and lists in which text is looked for."""
_DATA_ERRORS = (
    *(LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError),
    struct.error,
)
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
    arguments: object = None
    """Arguments that came with the start of a call; pieces that follow count more."""
    ended: bool = False
    """True once the provider said that the block is whole."""

    def part(self, provider: str) -> Part | None:
        """Return the finished part, or None for a text or thinking block without content."""
        text = "".join(self.pieces)
        match self.kind:
            case "text":
                return Text(text=text) if text else None
            case "thinking":
                shown = text or self.signature or self.redacted
                thinking = Thinking(text=text, signature=_text(self.signature), redacted=_text(self.redacted))
                return thinking if shown else None
            case "tool_call":
                text = text or _arguments_text(self.arguments)
                call = parse_tool_call(_text(self.id) or "", _text(self.name) or "", text)
                return call.model_copy(update={"extra": _plain(self.extra)}) if self.extra else call
            case "opaque":
                return Opaque(provider=provider, data=_plain(self.data))

    @property
    def is_whole_call(self) -> bool:
        """True for a call whose arguments so far are a JSON object."""
        text = "".join(self.pieces).rstrip()
        # Parsing all of it with each piece would take long; few pieces end so.
        if self.kind != "tool_call" or not text.endswith("}"):
            return False
        try:
            return isinstance(from_json(text), dict)
        except ValueError:
            return False


def _text(value: object) -> str | None:
    """Return an id, a name or a signature as text: servers send numbers there too."""
    if value is None or isinstance(value, str):
        return None if value is None else fix_surrogates(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data as history keeps it: JSON that can be written and read again."""
    fixed = fix_surrogates(json.dumps(data, ensure_ascii=False, default=str))
    return cast("dict[str, Any]", from_json(to_json(from_json(fixed), inf_nan_mode="null")))


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
    blocks: list[Block] = field(default_factory=list[Block])
    """Content blocks in the order of the reply."""
    counted: CallCount = field(init=False)
    """Running count of what the call costs."""
    _counts: dict[str, Any] = field(default_factory=dict[str, Any])
    _by_key: dict[int | str, list[Block]] = field(default_factory=dict[int | str, list[Block]])

    def __post_init__(self) -> None:
        self.counted = CallCount(self.request)

    @property
    def usage(self) -> Usage | None:
        """Usage as the provider counted it, None until it is sent."""
        return self.counted.usage

    def open(self, request_id: str | None = None) -> None:
        """Note that the provider has begun to answer."""
        self.opened, self.request_id = True, request_id

    # -- blocks

    def begin(self, key: int | str, kind: BlockKind, *, call_id: object = "", name: object = "") -> Block:
        """Begin a block of that kind, also where the key had another one before.

        A start that comes twice, before anything of the block, begins one block.
        """
        block = Block(kind, id=_text(call_id) or "", name=_text(name) or "")
        newest = self._newest(key)
        if newest is not None and newest == block:
            return newest
        self.blocks.append(block)
        self._by_key.setdefault(_key(key), []).append(block)
        return block

    def block(self, key: int | str, kind: BlockKind) -> Block:
        """Return the block of that key and kind to which a piece belongs; it begins one where there is none."""
        found = self._find(key, kind)
        return found or self.begin(key, kind)

    def end(self, key: int | str) -> Block | None:
        """Note that the newest block of that key is whole, and return it."""
        newest = self._newest(key)
        if newest is not None:
            newest.ended = True
        return newest

    def _newest(self, key: int | str) -> Block | None:
        blocks = self._by_key.get(_key(key))
        return blocks[-1] if blocks else None

    def _find(self, key: int | str, *kinds: BlockKind) -> Block | None:
        """Return the newest block of that key and kind, unless it has ended and others have followed it."""
        newest = self._newest(key)
        blocks = reversed(self._by_key.get(_key(key), ()))
        found = next((block for block in blocks if block.kind in kinds), None)
        return found if found is newest or (found is not None and not found.ended) else None

    def append(self, block: Block, piece: object) -> Iterable[ModelEvent]:
        """Append a piece to a block, and return the events to yield for it at once.

        A piece of text may come within objects and lists; a piece of a call's arguments may be their value.

        Raises:
            TypeError: there is no text in the piece; or it is a value in the midst of a call's arguments.

        """
        is_call = block.kind in ("tool_call", "opaque")
        if is_call and block.pieces and piece is not None and not isinstance(piece, str):
            raise TypeError(f"a {type(piece).__name__} in the midst of arguments")
        text = _arguments_text(piece) if is_call else _piece_text(piece)
        if not text:
            return ()
        begins_call = block.kind == "tool_call" and not block.pieces
        block.pieces.append(text)
        self.counted.write(text, begins_call=begins_call)
        match block.kind:
            case "text":
                return (TextDelta(text=text),)
            case "thinking":
                return (ThinkingDelta(text=text),)
            case _:
                return (ArgumentsDelta(text=text, begins=begins_call),)

    # -- calls

    def append_arguments(self, key: int | str, piece: object) -> Iterable[ModelEvent]:
        """Append a piece of arguments to the call that began under that key.

        Raises:
            ValueError: no call began there. Whatever the piece belongs to, no tool may get it.

        """
        block = self._find(key, "tool_call", "opaque")
        if block is None:
            raise ValueError(f"arguments of a call that never began, at {str(key)[:40]!r}")
        return self.append(block, piece)

    def extend_call(
        self,
        key: int | str,
        *,
        call_id: object = None,
        name: object = None,
        arguments: object = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Iterable[ModelEvent]:
        """Append a piece of a call where calls have no start of their own, and pieces tell what they belong to.

        Another id begins another call, and so does another name. A piece with a name, behind arguments that are whole,
        begins one too: some servers give all their calls the key 0, and no ids.
        """
        id_, named = _text(call_id) or "", _text(name) or ""
        piece = _arguments_text(arguments)
        block = self._call_of(key, id_, named, piece)
        if block is None:
            if not named and not id_:
                raise ValueError(f"arguments of a call that never began, at {str(key)[:40]!r}")
            block = self.begin(key, "tool_call", call_id=id_, name=named)
        elif (
            id_
            and id_ == block.id
            and piece.strip()
            and piece == "".join(block.pieces)
            and block.is_whole_call
        ):
            return ()  # a server that repeats the whole call at its end
        block.id, block.name = block.id or id_, block.name or named
        block.extra |= extra or {}
        if piece.strip() and _is_placeholder(block, id_, named):
            block.pieces.clear()
        return self.append(block, arguments)

    def _call_of(self, key: int | str, id_: str, named: str, piece: str) -> Block | None:
        """Return the call that the piece belongs to, or None where it begins another."""
        calls = [block for block in self._by_key.get(_key(key), ()) if block.kind == "tool_call"]
        if id_:
            same = next((block for block in reversed(calls) if block.id == id_), None)
            if same is not None or (calls and calls[-1].id):
                calls = [same] if same is not None else []
        newest = calls[-1] if calls else None
        if newest is None or (named and newest.name and named != newest.name):
            return None
        is_repeat = bool(id_) and id_ == newest.id and piece == "".join(newest.pieces)
        begins = bool(named and newest.name and piece.strip()) and not _is_placeholder(newest, id_, named)
        return None if begins and not is_repeat and newest.is_whole_call else newest

    def add_call(self, name: object, arguments: object, call_id: object = "") -> Iterable[ModelEvent]:
        """Add a tool call that came whole, behind the blocks so far; return the events to yield for it at once."""
        block = self.begin(f"call {len(self.blocks)}", "tool_call", call_id=call_id, name=name)
        return self.append(block, arguments)

    @property
    def has_calls(self) -> bool:
        """True when the reply calls a tool."""
        return any(block.kind == "tool_call" for block in self.blocks)

    def has(self, key: int | str) -> bool:
        """Return whether a block with content has that key."""
        return any(block.pieces for block in self._by_key.get(_key(key), ()))

    # -- the end

    def finish(self, stop: str, usage: Usage | None = None) -> None:
        """Note the provider's terminal mark: its stop reason, and its count of the whole reply if it sent one."""
        self.stop, self.complete = stop, True
        if usage is not None:
            self.count(usage, final=True)

    def count(self, usage: Usage, *, final: bool) -> None:
        """Note the provider's count of tokens; `final` when it counts the whole reply."""
        self.counted.count(usage, final=final)

    def count_tokens(
        self,
        *,
        final: bool,
        input_tokens: object = None,
        output_tokens: object = None,
        cache_read: object = 0,
        cache_write: object = 0,
        cache_write_1h: object = 0,
    ) -> None:
        """Note counts as the provider sent them, whatever they are: see `CallCount.count_tokens`."""
        self.counted.count_tokens(
            final=final,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read=cache_read,
            cache_write=cache_write,
            cache_write_1h=cache_write_1h,
        )

    def merge_counts(self, usage: object) -> dict[str, Any]:
        """Return the provider's counts so far, where each event may leave out those that have not changed."""
        if isinstance(usage, dict):
            fields = cast("dict[str, Any]", usage)
            self._counts |= {name: value for name, value in fields.items() if value is not None}
        return self._counts

    def cost(self) -> Usage | None:
        """Return the cost of the call so far, or None if the provider has not begun to answer.

        It is the provider's count where that is final. Else what is missing is estimated, and marked so.
        """
        return self.counted.cost() if self.opened else None

    def reply(self, stops: Mapping[str, ModelStop]) -> Reply:
        """Return the finished reply; `stops` translates the provider's stop reasons, beside those that all share.

        Raises:
            ModelError: the stop reason says that the answer is broken, or nobody knows it: see rule 5.

        """
        stop = model_stop(self.stop, stops)
        if stop is None:
            raise self.error(*broken_stop(self.stop))
        provider = self.request.config.provider
        found = [(block, part) for block in self.blocks if (part := block.part(provider))]
        parts = [part for _, part in found]
        if stop in ("max_tokens", "context_overflow") and found:
            parts[-1] = _mark_cut(*found[-1])
        return Reply(
            parts=_without_repeats(parts),
            stop=stop,
            usage=self.counted.cost(is_whole=True),
            model=_text(self.model) or "",
            request_id=_text(self.request_id),
            request_digest=self.digest,
            withheld=stop in ("refusal", "guardrail") and self.stop != MODEL_REFUSAL,
        )

    # -- the errors that can end the call

    def error(self, kind: ErrorKind, message: str, retry_after: timedelta | None = None) -> ModelError:
        """Return the error that ends this call, with the cost of the call so far."""
        text = f"{self.request.config.name}: {one_line(message)}"
        return ModelError(
            kind, text, retry_after=retry_after, request_id=_text(self.request_id), usage=self.cost()
        )

    def provider_error(
        self,
        body: object,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        codes: Mapping[str, ErrorKind] | None = None,
    ) -> ModelError:
        """Return the error that the provider told of, in a refusal or within a stream; never a bug of ours.

        `body` is what it sent: bytes, text, or decoded JSON of any shape. `codes` are kinds of the adapter's own.
        """
        error = read_error(body, status)
        delay = parse_retry_after(headers) if headers is not None else None
        kind = kind_of_error(error if delay is None else replace(error, delay=delay), codes)
        return self.error(kind, error.message, delay if delay is not None else error.delay)

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


def _key(key: object) -> int | str:
    """Return the key of a block as one that can be looked up: an index may be anything."""
    return key if isinstance(key, int | str) and not isinstance(key, bool) else repr(key)


def _piece_text(piece: object, depth: int = 0) -> str:
    """Return the text of a piece: of a text, of an object with one, or of a list of both."""
    match piece:
        case None:
            return ""
        case str():
            return piece
        case list() if depth < _MOST_DEPTH:
            return "".join(_piece_text(each, depth + 1) for each in cast("list[object]", piece))
        case dict() if depth < _MOST_DEPTH:
            fields = cast("dict[str, object]", piece)
            found = next((key for key in ("text", "thinking", "content") if key in fields), None)
            if found is not None:
                return _piece_text(fields[found], depth + 1)
        case _:
            pass
    raise TypeError(f"a piece of text is no text but a {type(piece).__name__}")  # pyright: ignore[reportUnknownArgumentType]


def _arguments_text(piece: object) -> str:
    """Return the JSON of a piece of a call's arguments: it may come as text, or as the value itself."""
    if piece is None or isinstance(piece, str):
        return piece or ""
    if not isinstance(piece, dict | list):
        raise TypeError(f"arguments are no JSON but a {type(piece).__name__}")
    return json.dumps(piece)


def _is_placeholder(block: Block, id_: str, named: str) -> bool:
    """Return whether the block's arguments stand for those that come in a piece of that id and name."""
    return block.pieces == ["{}"] and (not named or (bool(id_) and id_ == block.id))


def _without_repeats(parts: list[Part]) -> tuple[Part, ...]:
    """Return the parts, of which a call that came twice under one id stands once."""
    kept: list[Part] = []
    seen: list[ToolCall] = []
    for part in parts:
        if isinstance(part, ToolCall) and part.id:
            if part in seen:
                continue
            seen.append(part)
        kept.append(part)
    return tuple(kept)
