"""Messages of a transcript: frozen values that cross every boundary as plain JSON.

A transcript only grows at its end, and no message in it is ever edited. So its index identifies a message:
caches, queries and continue-as-new rely on that.
"""

from base64 import b64encode
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from perdure.attachments import File, FromFile
from perdure.errors import InvalidRequest
from perdure.texts import blobs_to_read_on
from perdure.tokens import (
    LARGEST_DOCUMENT,
    LARGEST_IMAGE,
    encoded_media_tokens,
    json_tokens,
    text_tokens,
)

_V = TypeVar("_V")


# Fields for which 0 or "" means something else than the default must not use this.
def is_empty(value: Any) -> bool:
    """Check whether the value can be left out of the JSON: history is paid for by the byte."""
    return value is None or value is False or value in (0, "", [], {}, ())


class Value(BaseModel):
    """Base of frozen values. Unknown fields, which a newer writer adds, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Usage(Value):
    """Tokens of one or more model calls, in five disjoint counts.

    `input_tokens` excludes tokens read from or written to the provider's prompt cache.
    """

    input_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    cache_read_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    cache_write_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    """Tokens written to the cache for five minutes, or for the provider's only span."""
    cache_write_1h_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    """Tokens written to the cache for an hour, which cost more."""
    output_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    estimated: bool = Field(default=False, exclude_if=is_empty)
    """True when part of it is our own estimate: a call broke off before the provider reported usage."""

    @property
    def all_input_tokens(self) -> int:
        """Tokens that the model read, cached ones included."""
        return self.input_tokens + self.cache_read_tokens + self.all_cache_write_tokens

    @property
    def all_cache_write_tokens(self) -> int:
        """Tokens written to the cache, for any span."""
        return self.cache_write_tokens + self.cache_write_1h_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens read and written."""
        return self.all_input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            estimated=self.estimated or other.estimated,
        )


class Text(Value):
    """Plain text."""

    kind: Literal["text"] = "text"
    text: str


class Thinking(Value):
    """Reasoning of a model. It goes back to the same model unchanged, with its signature."""

    kind: Literal["thinking"] = "thinking"
    text: str = ""
    signature: str | None = Field(default=None, exclude_if=is_empty)
    redacted: str | None = Field(default=None, exclude_if=is_empty)


def _as_base64(data: Any) -> Any:
    """Return bytes as base64, which JSON can hold; anything else as it is."""
    if isinstance(data, bytes | bytearray | memoryview):
        return b64encode(bytes(data)).decode()  # pyright: ignore[reportUnknownArgumentType]
    return data


Base64 = Annotated[str | None, BeforeValidator(_as_base64), Field(exclude_if=is_empty, repr=False)]
"""Bytes of a file as base64. A constructor takes the bytes themselves too."""


class Image(FromFile, Value):
    """Picture: `data` is base64, or `blob` names bytes in the blob store."""

    kind: Literal["image"] = "image"
    media_type: str = "image/png"
    data: Base64 = None
    blob: str | None = Field(default=None, exclude_if=is_empty)
    tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    """Upper bound of its tokens, written where its bytes go into the blob store; 0: not known."""

    @classmethod
    def _of(cls, file: File) -> Self:
        kind = file.media_type
        if kind is None or not kind.startswith("image/"):
            seen = f"of type {kind}" if kind else "of no type that is known"
            hint = ": send it as a Document" if kind == "application/pdf" else ""
            raise InvalidRequest(f"{file.source}: {seen}, and no picture{hint}")
        return cls.model_validate({"data": file.data, "media_type": kind})


class Document(FromFile, Value):
    """Document such as a PDF: `data` is base64, or `blob` names bytes in the blob store."""

    kind: Literal["document"] = "document"
    media_type: str = "application/pdf"
    name: str = "document"
    data: Base64 = None
    blob: str | None = Field(default=None, exclude_if=is_empty)
    tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    """As an image's."""

    @classmethod
    def _of(cls, file: File) -> Self:
        kind = file.media_type
        if kind is None:
            raise InvalidRequest(f"{file.source}: of no type that is known; give from_bytes its media_type")
        if kind.startswith("image/"):
            raise InvalidRequest(f"{file.source}: a picture; send it as an Image")
        return cls.model_validate({"data": file.data, "media_type": kind, "name": file.name})


class Opaque(Value):
    """Block that only its provider understands. It goes back to that provider unchanged."""

    kind: Literal["opaque"] = "opaque"
    provider: str
    data: dict[str, Any]


class ToolCall(Value):
    """Tool call that the model requests.

    `id` is unique in the run ("call-3-1": step 3, first call); approvals name it. `problem` says why the call
    cannot run (unknown tool, arguments that do not fit): such a call goes straight back to the model.
    """

    kind: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    problem: str | None = Field(default=None, exclude_if=is_empty)
    extra: dict[str, Any] = Field(default_factory=dict[str, Any], exclude_if=is_empty)
    """Fields that only its provider understands, such as a signature. They go back to its model unchanged."""


ResultPart = Annotated[Text | Image | Document, Field(discriminator="kind")]


class HookRecord(Value):
    """Record of a hook's verdict that changed something, kept with the reply or result."""

    hook: str
    point: str
    """Point at which the hook was asked, a `perdure.hooks.HookPoint`."""
    verdict: str
    reason: str = Field(default="", exclude_if=is_empty)


class ApprovalRecord(Value):
    """A person's decision about a tool call, kept with its result."""

    allow: bool
    by: str = Field(default="", exclude_if=is_empty)
    reason: str = Field(default="", exclude_if=is_empty)
    at: datetime | None = Field(default=None, exclude_if=is_empty)
    digest: str = ""
    """Digest of the approval that the person saw."""
    arguments: dict[str, Any] | None = Field(default=None, exclude_if=lambda v: v is None)
    """Arguments in place of the model's; None: the call is as the model asked for it."""


class ToolResult(Value):
    """Result of a tool call. An error is a result as well: text that the model can react to."""

    kind: Literal["tool_result"] = "tool_result"
    call_id: str
    name: str
    content: list[ResultPart] = Field(default_factory=list[ResultPart])
    is_error: bool = Field(default=False, exclude_if=is_empty)
    spilled: str | None = Field(default=None, exclude_if=is_empty)
    """Name of the whole text in the blob store, when `content` holds only its beginning."""
    duration_ms: int = Field(default=0, exclude_if=is_empty)
    attempts: int = Field(default=0, exclude_if=is_empty)
    error_kind: str | None = Field(default=None, exclude_if=is_empty)
    """Kind of the error, as in `perdure.errors.RULES`; None when the call succeeded."""
    stand_in: str | None = Field(default=None, exclude_if=is_empty)
    """Stand-in that answered for the failed tool: another tool's name, `answer` or `remembered`."""
    hooks: list[HookRecord] = Field(default_factory=list[HookRecord], exclude_if=is_empty)
    """Verdicts of hooks about the call."""
    may_have_effect: bool = Field(default=False, exclude_if=is_empty)
    """True when a write failed and may have had its effect all the same: see `perdure.wire.uncertain`."""
    approval: ApprovalRecord | None = Field(default=None, exclude_if=is_empty)
    """Decision of the person who was asked about the call. No model sees it."""
    not_run: bool = Field(default=False, exclude_if=is_empty)
    """True when the call was never started: it was wrong, refused, cut, or came too late."""

    @property
    def text(self) -> str:
        """Text of the text parts, a line each."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))


Part = Annotated[
    Text | Thinking | Image | Document | Opaque | ToolCall | ToolResult,
    Field(discriminator="kind"),
]
Role = Literal["user", "assistant", "tool"]


class ReplyMeta(Value):
    """Record of a model call, kept with its message: the source of `steps()` and bills."""

    step: int
    model: str
    usage: Usage = Field(default_factory=Usage)
    cost_microusd: int | None = Field(default=None, exclude_if=lambda v: v is None)
    stop: str = ""
    duration_ms: int = Field(default=0, exclude_if=is_empty)
    attempts: int = Field(default=1, exclude_if=lambda v: v == 1)
    request_id: str | None = Field(default=None, exclude_if=is_empty)
    request_digest: str | None = Field(default=None, exclude_if=is_empty)
    """Digest of the exact request that the provider got: equal digests mean equal requests."""
    errors: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Models that failed, and requests that were refused, before this model answered, each with the error."""
    hooks: list[HookRecord] = Field(default_factory=list[HookRecord], exclude_if=is_empty)
    """Verdicts of hooks about the call."""
    withheld: bool = Field(default=False, exclude_if=is_empty)
    """True when a filter of the provider stopped it: see `perdure.withheld`."""


class MessageCache:
    """Values that were made of a message and are kept for the next call that shows it: one for each purpose.

    A message never changes, so a value holds for as long as its key does. A value for another key takes its place.
    """

    __slots__ = ("_copies", "_sizes", "_values", "size_bytes")

    def __init__(self) -> None:
        self._values: dict[str, tuple[object, Any]] = {}
        self._sizes: dict[str, int] = {}
        self._copies: dict[str, tuple[Message, ...]] = {}
        self.size_bytes = 0
        """Bytes of the values, as their makers count them."""

    def find(self, purpose: str, key: object) -> Any:
        """Return the value that is kept for that purpose and key, or None."""
        found = self._values.get(purpose)
        return found[1] if found is not None and found[0] == key else None

    def add(self, purpose: str, key: object, value: Any, size_bytes: int) -> None:
        """Keep a value that takes so many bytes."""
        self.size_bytes += size_bytes - self._sizes.get(purpose, 0)
        self._values[purpose] = key, value
        self._sizes[purpose] = size_bytes

    def add_copies(self, purpose: str, key: object, copies: "tuple[Message, ...]") -> None:
        """Keep other forms of the message. What is kept with them counts too."""
        self.add(purpose, key, copies, sum(map(size_bytes, copies)))
        self._copies[purpose] = copies

    def all_bytes(self) -> int:
        """Return the bytes of the values, and of what is kept with other forms of the message."""
        if not self._copies:
            return self.size_bytes
        return self.size_bytes + sum(copy.cached_bytes for copies in self._copies.values() for copy in copies)


class Message(Value):
    """Message of a user, of the assistant, or of tools: all results of a step, in the order of the calls."""

    role: Role
    parts: list[Part]
    meta: ReplyMeta | None = Field(default=None, exclude_if=is_empty)
    answer_of: str = Field(default="", exclude_if=is_empty)
    """Of a user message: key of the run below whose answer it is, which came after its step."""

    @property
    def text(self) -> str:
        """Visible text: that of text parts and of tool results."""
        return "".join(p.text for p in self.parts if isinstance(p, Text | ToolResult))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Tool calls that the message requests, in order."""
        # Not by `isinstance`: the sandbox of workflows makes it slow, and transcripts are long.
        return [part for part in self.parts if part.kind == "tool_call"]

    @property
    def tool_results(self) -> list[ToolResult]:
        """Results that the message carries, in the order of the calls."""
        return [part for part in self.parts if part.kind == "tool_result"]

    @cached_property
    def has_attachments(self) -> bool:
        """True: the message, or a result in it, has an image or a document."""
        # Cached: each step looks at every message of the view.
        return bool(media_of(self))

    @cached_property
    def has_opaque(self) -> bool:
        """True: a part of the message is of a provider's own kind."""
        return any(isinstance(part, Opaque) for part in self.parts)

    @cached_property
    def result_bytes(self) -> int:
        """Bytes of the texts of its results, or of an answer that came later."""
        # Cached, as the next: each step looks at every message of the view.
        return sum(len(text.encode(errors="replace")) + 1 for text in self._result_texts())

    @cached_property
    def result_tokens(self) -> tuple[int, ...]:
        """Tokens of the text of each of its results, or of an answer that came later."""
        return tuple(text_tokens(text) for text in self._result_texts())

    def _result_texts(self) -> list[str]:
        if self.answer_of:
            return ["\n".join(part.text for part in self.parts if isinstance(part, Text))]
        return [result.text for result in self.tool_results]

    @cached_property
    def blobs(self) -> tuple[str, ...]:
        """Names of the blobs that hold its images and documents."""
        # Cached: each step looks at every message of the view.
        return tuple(part.blob for part in media_of(self) if part.blob)

    @cached_property
    def token_bound(self) -> int:
        """Upper bound of the tokens that a model reads in the message."""
        # Cached: each call counts what it sends.
        return _estimate_tokens(self)

    @cached_property
    def called_tools(self) -> tuple[str, ...]:
        """Names of the tools that it calls."""
        return tuple(call.name for call in self.tool_calls)

    @cached_property
    def cache(self) -> MessageCache:
        """Values that were made of the message, such as its JSON in a provider's format."""
        return MessageCache()

    @property
    def cached_bytes(self) -> int:
        """Bytes of the values in `cache`."""
        cache: MessageCache | None = self.__dict__.get("cache")
        return 0 if cache is None else cache.all_bytes()

    def __copy__(self) -> Self:
        """Return a copy without the values that were computed from this message: a copy is made to be changed."""
        return self._without_computed(super().__copy__())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy as `__copy__` does."""
        return self._without_computed(super().__deepcopy__(memo))

    def _without_computed(self, copied: Self) -> Self:
        values: dict[str, Any] = vars(copied)
        for name in values.keys() - type(self).model_fields.keys():
            del values[name]
        return copied

    @property
    def all_blobs(self) -> tuple[str, ...]:
        """Names of every blob that it needs: its media, and the whole texts of results that were cut."""
        spilled = [result.spilled for result in self.tool_results if result.spilled]
        # Late answers, and notes of a run before this one, are texts that say where they go on.
        texts = [part.text for part in self.parts if part.kind == "text"] if self.role == "user" else []
        return (*self.blobs, *spilled, *(name for text in texts for name in blobs_to_read_on(text)))

    @classmethod
    def user(cls, content: "str | list[Part]") -> "Message":
        """Make a user message of plain text or of parts."""
        return cls(role="user", parts=[Text(text=content)] if isinstance(content, str) else content)


def size_bytes(message: Message | ToolResult) -> int:
    """Return the bytes of the message, or of a result, as JSON in UTF-8."""
    return len(message.model_dump_json().encode())


_FRAME_TOKENS: Final = 8
"""Tokens of the marks that a provider puts around a message, and around a part of it."""
_CALL_TOKENS: Final = 24
"""Tokens of the provider's id of a call, and of the fields around it."""


def estimated_tokens(message: Message) -> int:
    """Return an upper bound of the tokens that a model reads in the message."""
    return message.token_bound


def _estimate_tokens(message: Message) -> int:
    parts = sum(_FRAME_TOKENS + part_tokens(part) for part in message.parts)
    # The scripted model counts the JSON, at four bytes a token; a script may have an answer of many small parts.
    sent = message.model_dump_json(exclude={"meta": True, "parts": {"__all__": _UNCOUNTED}})
    return max(_FRAME_TOKENS + parts, -(-len(sent.encode()) // 4) + _media_tokens(message))


_UNCOUNTED: Final[dict[str, Any]] = {"data": True, "content": {"__all__": {"data"}}}
"""Fields of parts that hold bytes and no text."""


def part_tokens(part: "Part | ResultPart") -> int:
    """Return an upper bound of the tokens of a part."""
    match part:
        case Text():
            return text_tokens(part.text)
        case Thinking():
            return (
                text_tokens(part.text) + text_tokens(part.signature or "") + text_tokens(part.redacted or "")
            )
        case Image() | Document():
            return _tokens_of_media(part)
        case Opaque():
            return json_tokens(part.data)
        case ToolCall():
            extra = [part.extra] if part.extra else []
            return _CALL_TOKENS + json_tokens([part.name, part.arguments, *extra])
        case ToolResult():
            content = sum(_FRAME_TOKENS + part_tokens(piece) for piece in part.content)
            return _CALL_TOKENS + text_tokens(part.name) + content


def _tokens_of_media(part: "Image | Document") -> int:
    if part.data:
        return encoded_media_tokens(part.kind, part.media_type, part.data)
    return part.tokens or (LARGEST_IMAGE if part.kind == "image" else LARGEST_DOCUMENT)


def _media_tokens(message: Message) -> int:
    return sum(_tokens_of_media(part) for part in media_of(message))


def media_of(message: Message) -> list[Image | Document]:
    """Return the images and documents of the message, those in its tool results included."""
    parts: list[Part | ResultPart] = list(message.parts)
    for result in message.tool_results:
        parts.extend(result.content)
    return [part for part in parts if isinstance(part, Image | Document)]
