"""The interface to a model: its configuration, a request, and the events of a streamed reply.

A stream yields any number of deltas and then exactly one `Reply`. An adapter may yield the `Reply` only after
the provider's own terminal mark. A stream that ends without a `Reply` was cut, whatever came before.

`perdure.providers` exports all of this, with the helpers that adapters share.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, Protocol, cast, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from perdure.definitions import DefinitionModel
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
"""Reasons why a reply ended. No provider sends "cancelled": then a stop of the run cut the call."""

ToolChoice = Literal["auto", "none", "required"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class ModelConfig(DefinitionModel):
    """Model of an agent, and its settings. The provider decides what is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """"provider:model", for example "anthropic:claude-sonnet-5-5"."""
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    """Most tokens of a reply."""
    context_tokens: Annotated[int, Field(ge=1024)] | None = Field(default=None, exclude_if=is_empty)
    """Size of the model's context, where you know it: the window and long results then leave room for a reply."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop_sequences: tuple[str, ...] = ()
    thinking: Literal["adaptive", "off"] | Annotated[int, Field(ge=1024)] | None = None
    """Reasoning before the answer: "adaptive", "off", or a budget in tokens."""
    effort: Effort | None = None
    timeout: timedelta = timedelta(minutes=10)
    """Longest time of a call, from the first byte sent to the last byte received."""
    read_timeout: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Longest time without any data from the provider. A stalled stream is then given up and tried again,
    long before `timeout`. None: only `timeout` counts. Models that think in silence need minutes."""
    options: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Settings of the provider: `region`, `guardrail`, `base_url`, `extra_body`, ..."""

    @field_validator("name")
    @classmethod
    def _names_a_provider(cls, name: str) -> str:
        provider, colon, model = name.partition(":")
        if not (provider and colon and model):
            raise ValueError('write the model as "provider:model", such as "anthropic:claude-sonnet-5-5"')
        return name

    @field_validator("stop_sequences", mode="before")
    @classmethod
    def _order_set(cls, sequences: Any) -> Any:
        # The order of a set differs from process to process, and the digest of a spec must not.
        is_set = isinstance(sequences, set | frozenset)
        return sorted(cast("Iterable[Any]", sequences), key=str) if is_set else sequences

    @model_validator(mode="after")
    def _leaves_room_to_answer(self) -> "ModelConfig":
        # Zero would time out every call, and look like an outage of the provider.
        if self.read_timeout is not None and self.read_timeout <= timedelta():
            raise ValueError(f"read_timeout must be positive, not {self.read_timeout}")
        if self.context_tokens is not None and self.max_tokens >= self.context_tokens:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) must be less than context_tokens ({self.context_tokens}): "
                "the conversation needs the rest"
            )
        # Thinking counts into the reply's tokens: without this, no token would be left for the answer.
        if isinstance(self.thinking, int) and self.thinking >= self.max_tokens:
            raise ValueError(f"thinking ({self.thinking}) must be less than max_tokens ({self.max_tokens})")
        return self

    @property
    def longest_silence(self) -> float:
        """Longest time without any data from the provider, in seconds."""
        return (self.read_timeout or self.timeout).total_seconds()

    @property
    def provider(self) -> str:
        """Part before the colon: the key into the worker's models."""
        return self.name.partition(":")[0]

    @property
    def model(self) -> str:
        """Part after the colon: the provider's own name of the model."""
        return self.name.partition(":")[2]


class ToolDefinition(BaseModel):
    """Tool as the model sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    input_schema: dict[str, Any]
    """JSON schema of the arguments: always an object."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Model call: everything that an adapter, or a script in a test, needs to answer it."""

    config: ModelConfig
    instructions: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice = "auto"
    """With "none" the model must answer in words. The tools stay listed, so that the provider's prompt cache
    holds. With "required" it must call one of the tools, where the provider can force it: the last call of an agent
    with an output type lists the final answer alone."""
    max_tokens: int = 8192
    """Bound of this reply: the config's, or less when a budget leaves less."""
    step: int = 1
    """Number of this model call in the run, from 1."""
    user: str | None = None
    """Person or tenant that the run is for, as `RunRequest.user` names it."""
    blobs: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    """Bytes of the images and documents that name a blob, by the blob's name."""


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """Next piece of the visible answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ThinkingDelta:
    """Next piece of the reasoning, where the provider shows it."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ArgumentsDelta:
    """Next piece of a call's arguments, or of a block that nobody is shown. Nobody sees it: it only counts."""

    text: str
    begins: bool = False
    """True for the first piece of a call: its name and its marks are billed too."""


@dataclass(frozen=True, kw_only=True)
class UsageSoFar:
    """Usage so far, as the provider counts it. If the call is cut, this is all that is known of its cost."""

    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Finished answer.

    `parts` are Text, Thinking, Opaque and ToolCall, in the provider's order. The ids of tool calls are the
    provider's, or empty: the activity replaces them by ids that are unique in the run. A call whose arguments
    are not a JSON object carries a `problem`, and the raw text as `arguments={"_raw": ...}`.
    """

    parts: tuple[Part, ...]
    stop: ModelStop
    usage: Usage
    model: str = ""
    """Model that answered, as the provider names it. Empty: the one of the config."""
    request_id: str | None = None
    """Provider's id of the call."""
    request_digest: str | None = None
    """Digest of the request as it was sent: equal digests mean equal requests to the same provider."""
    withheld: bool = False
    """True when a filter of the provider stopped it. The messages that it answers, and what there is of it, are not
    sent again: later calls have words in their place."""


ModelEvent = TextDelta | ThinkingDelta | ArgumentsDelta | UsageSoFar | Reply


@runtime_checkable
class Model(Protocol):
    """Provider of models. The worker process uses the same object for all its calls, concurrently."""

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Call the model once, and stream its reply. Closing the iterator closes the provider's connection.

        An implementation must not retry: Temporal does, and its retries are visible in the history.

        Raises:
            ModelError: the provider or the network failed; the error's kind decides what happens next.

        """
        ...

    def check(self, config: ModelConfig) -> None:
        """Check, before anything is sent, that the provider takes this config.

        Raises:
            DefinitionError: a setting or an option that the provider does not take.
            ModelError: kind "authentication" when no credentials are configured.

        """
        ...


def canonical_json(value: Any) -> bytes:
    """Return the value as JSON with sorted keys and without spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of the value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
