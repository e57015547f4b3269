"""What crosses between a run and its activities: names, inputs and outcomes."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from pydantic import Field

from perdure.messages import Message, ToolResult, Usage, Value, is_empty
from perdure.model import ModelStop, ToolChoice

SPEC_DIGEST_CHARS: Final = 16
"""Of a spec's digest a model call carries this much: enough to tell the specs of one worker apart."""

PROGRESS_WINDOW: Final = 8 * 1024
"""Most characters of partial text in a heartbeat."""


class TranscriptView(Value):
    """Which messages of the transcript the model sees: the first `pinned`, then `start` to `length`."""

    pinned: int = Field(default=0, exclude_if=is_empty)
    start: int = Field(default=0, exclude_if=is_empty)
    length: int


class ModelInput(Value):
    """One model call. O(1): names the transcript instead of carrying it."""

    agent: str
    spec_digest: str
    """Digest of the run's spec: a worker that does not know it asks the run."""
    step: int
    model: int = Field(default=0, exclude_if=is_empty)
    """Index into the spec's models."""
    view: TranscriptView
    new_messages: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """The newest messages of the view, when they are small; the rest is asked for by query."""
    tail_digest: str | None = Field(default=None, exclude_if=is_empty)
    """Digest of the model's last answer and what has come since. A worker may remember an answer of
    an attempt that did not count, and puts tool messages together from what it remembers: with
    this it is sure of both, or asks."""
    previous_run_id: str | None = Field(default=None, exclude_if=is_empty)
    """In the first call after a continue-as-new, the run id before it: it had the transcript up to here."""
    max_tokens: int
    tool_choice: ToolChoice = Field(default="auto", exclude_if=lambda v: v == "auto")
    note: str | None = Field(default=None, exclude_if=is_empty)
    """A line for this call only, after the instructions."""
    offer_read_result: bool = Field(default=False, exclude_if=is_empty)
    """True when results were cut: then the model gets the tool that reads the rest."""
    offer_handoff: bool = Field(default=False, exclude_if=is_empty)
    """True in a swarm: then the model gets the tool to hand off."""
    stream: bool = Field(default=True, exclude_if=lambda v: v is True)
    user: str | None = Field(default=None, exclude_if=is_empty)
    force_once: bool = Field(default=False, exclude_if=is_empty)
    """True when a person has told the parked run to go on: an open circuit does not keep it from asking."""


def tail_of(messages: Sequence[Message], start: int = 0) -> list[Message]:
    """Return the model's last answer and what follows it, or all messages from `start` on without one."""
    for index in range(len(messages) - 1, start - 1, -1):
        if messages[index].role == "assistant":
            return list(messages[index:])
    return list(messages[start:])


def tail_digest(messages: Sequence[Message]) -> str:
    """What `ModelInput.tail_digest` holds."""
    whole = sha256()
    for message in messages:
        whole.update(message.model_dump_json(exclude={"meta"}).encode())
    return whole.hexdigest()[:16]


class ModelOutcome(Value):
    """What a model call gave."""

    message: Message
    stop: ModelStop
    output: Any = Field(default=None, exclude_if=lambda v: v is None)
    """The validated output, when the model gave its final answer in the form asked for."""
    output_problem: str | None = Field(default=None, exclude_if=is_empty)
    wasted: Usage = Field(default=Usage(), exclude_if=lambda v: v == Usage())
    """What earlier attempts of this call had cost when they broke off."""
    wasted_microusd: int = Field(default=0, exclude_if=is_empty)


class ModelFailure(Value):
    """Details of the error a model call ends with."""

    kind: str
    message: str
    wasted: Usage = Usage()
    wasted_microusd: int = 0
    retry_in: timedelta | None = Field(default=None, exclude_if=is_empty)
    """When it is worth another try, for what time may mend; with some chance in it, so that not all
    that wait come at once."""


class ToolInput(Value):
    """One tool call."""

    agent: str
    tool: str
    call_id: str
    arguments: dict[str, Any]
    idempotency_key: str
    preview_bytes: int = Field(default=16_384, exclude_if=lambda v: v == 16_384)
    user: str | None = Field(default=None, exclude_if=is_empty)
    context: dict[str, Any] = Field(default_factory=dict[str, Any], exclude_if=is_empty)
    stream: bool = Field(default=True, exclude_if=lambda v: v is True)


class RemoteContext(Value):
    """The second argument of a remote tool."""

    run_id: str
    call_id: str
    idempotency_key: str
    agent: str
    user: str | None = None
    context: dict[str, Any] = Field(default_factory=dict[str, Any])


class ToolOutcome(Value):
    """What a tool call gave: always something for the model, an error as text included."""

    result: ToolResult


class Progress(Value):
    """A heartbeat of a call: what those who watch see before it ends.

    `text` is a window into the visible answer that starts at character `offset`.
    """

    call: str
    """"step-3" for a model call, the call id for a tool call."""
    attempt: int
    seq: int
    offset: int = 0
    text: str = ""
    note: str = ""
    """A tool's own word on how far it is."""
    spent: Usage = Usage()
    """Usage of this attempt and those before it, in case it is the last thing heard of them."""
    may_have_effect: bool = Field(default=False, exclude_if=is_empty)
    """A tool's call may have had its effect by now, in this attempt or an earlier one."""


class ResolveRequest(Value):
    """What `resolve_agent` is asked."""

    agent: str
    at: datetime
    cost_limited: bool = Field(default=False, exclude_if=is_empty)
    """The request bounds the cost, so every price must be known."""
    parent: str | None = Field(default=None, exclude_if=is_empty)
    """The run that pinned the spec, by its workflow id; to be asked where this worker has another."""
    pin: str | None = Field(default=None, exclude_if=is_empty)
    model: str | None = Field(default=None, exclude_if=is_empty)
    """To be the first of the chain in place of the agent's own."""
    layout: int = 1
    """How the run would write its history, see `ResolvedAgent`."""


class NodeCall(Value):
    """One call of a function that is a node of a graph."""

    graph: str
    node: str
    key: str
    input: dict[str, Any]
    """A `perdure.graph.NodeInput`."""


class KeepText(Value):
    """A text that may be too long for a model."""

    text: str
    preview_bytes: int


class KeptText(Value):
    """What the model sees of it; `spilled` names the whole."""

    shown: str
    spilled: str | None = None


class Relay(Value):
    """An update for another run of the tree."""

    run_id: str
    update: str
    argument: Any


MODEL_HEARTBEAT: Final = timedelta(seconds=5)
MODEL_ATTEMPTS: Final = 6
