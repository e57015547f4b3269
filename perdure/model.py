"""What a model is to us: one Protocol, streaming, with usage. Providers live in `activities/`.

The contract of a stream: any number of deltas, then exactly one `Reply`, which an adapter may
yield only after the provider's own terminal mark and usage. A stream that ends without a `Reply`
was cut, whatever it said before.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from perdure.messages import Message, Part, Usage, is_empty

ModelStop = Literal[
    "end_turn",
    "tool_calls",
    "max_tokens",
    "stop_sequence",
    "refusal",
    "guardrail",
    "context_overflow",
    "pause_turn",
    "cancelled",
]
"""Why a model stopped, in our words. "cancelled" is ours: a stop cut the call, what it said is kept."""

ToolChoice = Literal["auto", "none"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class ModelConfig(BaseModel):
    """Which model, and how it is to be asked. What is None is left to the provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """"provider:model", for example "anthropic:claude-sonnet-5-5"."""
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    """Most tokens of one reply."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop_sequences: tuple[str, ...] = ()
    thinking: Literal["adaptive", "off"] | Annotated[int, Field(ge=1024)] | None = None
    """"adaptive", "off", or a budget in tokens."""
    effort: Effort | None = None
    timeout: timedelta = timedelta(minutes=10)
    """Longest one call may take, from first byte sent to last byte received."""
    read_timeout: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Longest the provider may send nothing at all: a stalled stream is then given up, and tried again, long
    before `timeout`. None: no bound of its own. Models that think in silence need minutes."""
    options: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Provider's own settings: `region`, `guardrail`, `base_url`, `extra_body`, ..."""

    @field_validator("name")
    @classmethod
    def _names_a_provider(cls, name: str) -> str:
        provider, colon, model = name.partition(":")
        if not (provider and colon and model):
            raise ValueError('write the model as "provider:model", such as "anthropic:claude-sonnet-5-5"')
        return name

    @model_validator(mode="after")
    def _leaves_room_to_answer(self) -> "ModelConfig":
        if self.read_timeout is not None and self.read_timeout <= timedelta():
            raise ValueError(f"read_timeout must be positive, not {self.read_timeout}")
        if isinstance(self.thinking, int) and self.thinking >= self.max_tokens:
            raise ValueError(f"thinking ({self.thinking}) must be less than max_tokens ({self.max_tokens})")
        return self

    @property
    def longest_silence(self) -> float:
        """Seconds for which the provider may send nothing."""
        return (self.read_timeout or self.timeout).total_seconds()

    @property
    def provider(self) -> str:
        """The part before the colon: the key into the worker's models."""
        return self.name.partition(":")[0]

    @property
    def model(self) -> str:
        """The part after the colon: what the provider is asked for."""
        return self.name.partition(":")[2]


class ToolDefinition(BaseModel):
    """A tool as the model sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """One call: everything an adapter, or a script in a test, needs to answer."""

    config: ModelConfig
    instructions: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice = "auto"
    """"none": answer in words; the tools stay listed so that the provider's prompt cache holds."""
    max_tokens: int = 8192
    """Bound of this reply: the config's, or less when a budget leaves less."""
    step: int = 1
    """Which model call of the run this is, from 1."""
    user: str | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    """Bytes of the images and documents that name a blob, by that name."""


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The next piece of the visible answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ThinkingDelta:
    """The next piece of the reasoning, where the provider shows it."""

    text: str


@dataclass(frozen=True, kw_only=True)
class UsageSoFar:
    """What the provider has counted up to now: all that is known of a call that is cut."""

    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A finished answer.

    `parts` are Text, Thinking, Opaque and ToolCall, in the provider's order. The ids of tool calls
    are the provider's; the activity gives them ids unique in the run. A call whose arguments are
    not a JSON object carries `problem` and the raw text as `arguments={"_raw": ...}`.
    """

    parts: tuple[Part, ...]
    stop: ModelStop
    usage: Usage
    model: str = ""
    """The model that answered, as the provider names it; empty: as asked."""
    request_id: str | None = None
    request_digest: str | None = None


ModelEvent = TextDelta | ThinkingDelta | UsageSoFar | Reply


@runtime_checkable
class Model(Protocol):
    """A provider of models. One object serves all calls of a worker process, concurrently."""

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Ask the model. Closing the iterator closes the provider's connection.

        Raises:
            ModelError: for everything the provider or the network does wrong. No retries inside.

        """
        ...

    def check(self, config: ModelConfig) -> None:
        """Refuse, before anything is sent, what this provider does not take.

        Raises:
            DefinitionError: a setting the provider does not know.
            ModelError: kind "authentication" when no credentials are configured.

        """
        ...


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def digest(value: Any) -> str:
    """SHA-256 of the value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
