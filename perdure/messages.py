"""Messages of a transcript: frozen values that cross every boundary as plain JSON.

A transcript only ever grows at its end. A message is never edited once it is in it, so its
index is its name: caches, queries and continue-as-new all count on that.
"""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def is_empty(value: Any) -> bool:
    """True for what need not be written: history is paid for by the byte."""
    return value is None or value is False or value in (0, "", [], {}, ())


class Value(BaseModel):
    """A frozen value; unknown fields of a newer writer are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Usage(Value):
    """Tokens of one or more model calls, in four disjoint counts.

    `input_tokens` excludes what was read from or written to the provider's prompt cache.
    """

    input_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    cache_read_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    cache_write_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    output_tokens: int = Field(default=0, ge=0, exclude_if=is_empty)
    estimated: bool = Field(default=False, exclude_if=is_empty)
    """True when some of it was counted by us, because a call was cut before the provider said."""

    @property
    def all_input_tokens(self) -> int:
        """Everything the model read, cached or not."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def total_tokens(self) -> int:
        """Everything read and written."""
        return self.all_input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            estimated=self.estimated or other.estimated,
        )


class Text(Value):
    """Plain text."""

    kind: Literal["text"] = "text"
    text: str


class Thinking(Value):
    """A model's reasoning; goes back to the same model unchanged, its signature with it."""

    kind: Literal["thinking"] = "thinking"
    text: str = ""
    signature: str | None = Field(default=None, exclude_if=is_empty)
    redacted: str | None = Field(default=None, exclude_if=is_empty)


class Image(Value):
    """A picture: `data` is base64, or `blob` names bytes kept in the blob store."""

    kind: Literal["image"] = "image"
    media_type: str = "image/png"
    data: str | None = Field(default=None, exclude_if=is_empty, repr=False)
    blob: str | None = Field(default=None, exclude_if=is_empty)


class Document(Value):
    """A document such as a PDF: `data` is base64, or `blob` names bytes in the blob store."""

    kind: Literal["document"] = "document"
    media_type: str = "application/pdf"
    name: str = "document"
    data: str | None = Field(default=None, exclude_if=is_empty, repr=False)
    blob: str | None = Field(default=None, exclude_if=is_empty)


class Opaque(Value):
    """A provider's own block that we do not interpret and send back to it unchanged."""

    kind: Literal["opaque"] = "opaque"
    provider: str
    data: dict[str, Any]


class ToolCall(Value):
    """A call the model asked for.

    `id` is unique in the run ("call-3-1": step 3, first call) and is what people approve.
    `problem` says why the call cannot be carried out (unknown tool, arguments that do not
    parse or validate); such a call goes back to the model and schedules nothing.
    """

    kind: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    problem: str | None = Field(default=None, exclude_if=is_empty)


ResultPart = Annotated[Text | Image | Document, Field(discriminator="kind")]


class ToolResult(Value):
    """What one tool call gave; `is_error` results are text the model can react to."""

    kind: Literal["tool_result"] = "tool_result"
    call_id: str
    name: str
    content: list[ResultPart] = Field(default_factory=list[ResultPart])
    is_error: bool = Field(default=False, exclude_if=is_empty)
    spilled: str | None = Field(default=None, exclude_if=is_empty)
    """Digest of the whole text in the blob store, when `content` holds only its beginning."""
    duration_ms: int = Field(default=0, exclude_if=is_empty)
    attempts: int = Field(default=0, exclude_if=is_empty)
    error_kind: str | None = Field(default=None, exclude_if=is_empty)
    """Of an error: its kind, as `perdure.errors.RULES` has it."""
    stand_in: str | None = Field(default=None, exclude_if=is_empty)
    """What answered in place of the tool, which failed: another tool's name, `answer` or `remembered`."""

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, Text))


Part = Annotated[
    Text | Thinking | Image | Document | Opaque | ToolCall | ToolResult,
    Field(discriminator="kind"),
]
Role = Literal["user", "assistant", "tool"]


class ReplyMeta(Value):
    """How an assistant message came to be: the record behind `steps()`, bills and digests."""

    step: int
    model: str
    usage: Usage = Field(default_factory=Usage)
    cost_microusd: int | None = Field(default=None, exclude_if=lambda v: v is None)
    stop: str = ""
    duration_ms: int = Field(default=0, exclude_if=is_empty)
    attempts: int = Field(default=1, exclude_if=lambda v: v == 1)
    request_id: str | None = Field(default=None, exclude_if=is_empty)
    request_digest: str | None = Field(default=None, exclude_if=is_empty)
    """SHA-256 of the exact request the provider got, as canonical JSON."""
    errors: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Models of the fallback chain that failed before this one answered, and why."""


class Message(Value):
    """One message: `role` is user, assistant, or tool (all results of one step, in order)."""

    role: Role
    parts: list[Part]
    meta: ReplyMeta | None = Field(default=None, exclude_if=is_empty)

    @property
    def text(self) -> str:
        """The visible text: text parts, and the text of tool results."""
        return "".join(p.text for p in self.parts if isinstance(p, Text | ToolResult))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls this message asks for, in order."""
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def tool_results(self) -> list[ToolResult]:
        """The results this message carries, in the order of the calls."""
        return [part for part in self.parts if isinstance(part, ToolResult)]

    @cached_property
    def blobs(self) -> tuple[str, ...]:
        """Names of the blobs that hold its images and documents. Kept: each step looks at every message."""
        return tuple(part.blob for part in _media(self) if part.blob)

    @classmethod
    def user(cls, content: "str | list[Part]") -> "Message":
        """A user message of plain text, or of parts."""
        return cls(role="user", parts=[Text(text=content)] if isinstance(content, str) else content)


def size_bytes(message: Message | ToolResult) -> int:
    """Bytes of the message, or of one result, as JSON (UTF-8): what it costs to carry."""
    return len(message.model_dump_json().encode())


def estimate_tokens(byte_count: int) -> int:
    """A rough count where no provider counted: four bytes a token, rounded up."""
    return -(-byte_count // 4)


IMAGE_TOKENS = 1600
"""About what providers count for a large picture, however many bytes it has."""


def estimated_tokens(message: Message) -> int:
    """A rough count of what a model reads in the message; a picture's bytes are not words."""
    pictures = [part for part in _media(message) if isinstance(part, Image)]
    encoded = sum(len(picture.data or "") for picture in pictures)
    return estimate_tokens(size_bytes(message) - encoded) + IMAGE_TOKENS * len(pictures)


def _media(message: Message) -> list[Image | Document]:
    parts: list[Part | ResultPart] = list(message.parts)
    for result in message.tool_results:
        parts.extend(result.content)
    return [part for part in parts if isinstance(part, Image | Document)]
