"""Inputs, outcomes and heartbeats of activities: all that crosses between a run and its effects.

History is paid for by the byte, so inputs stay small and fields that hold their default are left out.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, ClassVar, Final

from pydantic import Field

from perdure.hooks import HookPoint
from perdure.messages import HookRecord, Message, ToolCall, ToolResult, Usage, Value, is_empty
from perdure.model import ModelStop, ToolChoice
from perdure.wire.reservation import Reservation
from perdure.wire.spec import McpSource

MODEL_HEARTBEAT: Final = timedelta(seconds=5)
MODEL_ATTEMPTS: Final = 6
"""Attempts of one model call, the first included."""

SPEC_DIGEST_CHARS: Final = 16
"""Length of the spec digest in a model call: enough to tell apart the specs that one worker knows."""

WORKER_DEATHS: Final = 10
"""Deaths of workers that a call of a tool, or of a graph's function, outlives. Bounded, because a call may be what
kills them."""

FUNCTION_ATTEMPTS: Final = 3
"""Attempts of a graph's function that may fail with a transient error, the first included."""

PROGRESS_WINDOW: Final = 8 * 1024
"""Most characters of partial text in a heartbeat."""


_TOOL_TIMEOUT: Final = timedelta(minutes=1)


class TranscriptView(Value):
    """Messages of the transcript that the model sees: the pinned request, if any, then `start` to `length`."""

    # Counted from 1, because fields that are 0 are left out.
    pinned: int = Field(default=0, exclude_if=is_empty)
    """Number of the message that is shown before the window, counted from 1; 0: none is."""
    start: int = Field(default=0, exclude_if=is_empty)
    length: int
    unsent: list[int] = Field(default_factory=list[int], exclude_if=is_empty)
    """Indexes of messages of which the model reads words: no request could bring them."""


class ModelInput(Value):
    """Input of a model call. Its size does not grow with the run: it names the transcript."""

    agent: str
    spec: str
    """Beginning of the spec's `full_digest`. A worker that does not know that spec asks the run for it."""
    step: int
    model: int = Field(default=0, exclude_if=is_empty)
    """Index into the spec's models."""
    view: TranscriptView
    newest: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """Newest messages of the view, if they are small. The worker queries the run for the rest."""
    # A worker may remember the answer of an attempt that the run never accepted, and it builds tool messages
    # from results that it remembers. The digest proves both, or the worker queries the run.
    tail: str | None = Field(default=None, exclude_if=is_empty)
    """`tail_digest` of the messages from the model's last answer on."""
    previous_run_id: str | None = Field(default=None, exclude_if=is_empty)
    """Run id before a continue-as-new, in the first call after it: its cached transcript is still valid."""
    max_tokens: int
    reservation: Reservation | None = Field(default=None, exclude_if=is_empty)
    """What all attempts may spend together; None without a bound."""
    tool_choice: ToolChoice = Field(default="auto", exclude_if=lambda v: v == "auto")
    note: str | None = Field(default=None, exclude_if=is_empty)
    """Line added to the instructions of this call only."""
    result_tokens: int = Field(default=0, exclude_if=is_empty)
    """Most tokens of the results of one step, as an overflow has shown; 0: the usual bound holds."""
    offer_read_result: bool = Field(default=False, exclude_if=is_empty)
    """True once a result was cut: the model gets the tool that reads the rest."""
    offer_read_back: bool = Field(default=False, exclude_if=is_empty)
    """True once messages have left the window: the model gets the tool that reads them, where the strategy says so."""
    offer_handoff: bool = Field(default=False, exclude_if=is_empty)
    """True in a swarm: the model gets the handoff tool."""
    stream: bool = Field(default=True, exclude_if=lambda v: v is True)
    user: str | None = Field(default=None, exclude_if=is_empty)
    force_once: bool = Field(default=False, exclude_if=is_empty)
    """Forced retry: a person resumed the parked run, so the call passes an open circuit."""
    summary: str = Field(default="", exclude_if=is_empty)
    """`summary_digest` of the summary of messages before `view.start`. The worker has its text, or queries the run."""
    refused: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    """Keys of attachments that a provider has refused: the model reads words in their place."""
    summarize: int = Field(default=0, exclude_if=is_empty)
    """Index before which the call summarizes the view's messages, instead of answering; 0: it answers."""
    keeps: int = Field(default=0, exclude_if=is_empty)
    """Of a call that summarizes: number of the request that stays visible, counted from 1; 0: none does."""


def tail_of(messages: Sequence[Message], start: int = 0) -> list[Message]:
    """Return the model's last answer and what follows it, or all messages from `start` on without one."""
    for index in range(len(messages) - 1, start - 1, -1):
        if messages[index].role == "assistant":
            return list(messages[index:])
    return list(messages[start:])


_ADDED_LATER: Final[Any] = {"meta": True, "parts": {"__all__": {"approval"}}}


def tail_digest(messages: Sequence[Message]) -> str:
    """Return the digest by which a run and a worker compare the tail of a transcript."""
    digest = sha256()
    for message in messages:
        # The run adds these after the worker has cached the message: the record of a reply, and decisions.
        digest.update(message.model_dump_json(exclude=_ADDED_LATER).encode())
    # 64 bits show a difference within a run well enough; history is paid for by the byte.
    return digest.hexdigest()[:16]


def summary_digest(summary: str) -> str:
    """Return the digest by which a model call names the run's summary; empty without a summary."""
    return sha256(summary.encode(errors="replace")).hexdigest()[:16] if summary else ""


CUT_CALL: Final = (
    "the reply was cut by max_tokens in the midst of this call; it was not run; "
    "make the call shorter, or make several smaller ones"
)
"""Problem of a call that was cut by the length of its reply."""


class ModelOutcome(Value):
    """Outcome of a model call."""

    message: Message
    stop: ModelStop
    output: Any = Field(default=None, exclude_if=lambda v: v is None)
    """Validated output, when the model gave its final answer in the required form."""
    output_problem: str | None = Field(default=None, exclude_if=is_empty)
    wasted: Usage = Field(default=Usage(), exclude_if=lambda v: v == Usage())
    """Usage of earlier attempts of this call that broke off."""
    wasted_microusd: int = Field(default=0, exclude_if=is_empty)
    refused: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    """Keys of attachments that the provider refused in this call, and of which the model was told in words."""


class ModelFailure(Value):
    """Details of the error that ends a model call."""

    kind: str
    message: str
    wasted: Usage = Usage()
    wasted_microusd: int = 0
    unheard: int = Field(default=0, exclude_if=is_empty)
    """Attempts that were cut off before they reported anything, beside what `wasted` counts."""
    retry_in: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Delay before a transient failure is worth a retry, jittered: parked runs must not retry together."""


def most_attempts(failures: int, *, repeatable: bool = True) -> int:
    """Return the attempts for Temporal of a call that may fail so often: deaths of workers are counted apart."""
    # The only attempt of a call that must not be repeated ends with its worker.
    return failures + WORKER_DEATHS if repeatable or failures > 1 else 1


class ToolInput(Value):
    """Input of a tool call."""

    agent: str
    tool: str
    call_id: str
    arguments: dict[str, Any]
    idempotency_key: str
    preview_bytes: int = Field(default=16_384, exclude_if=lambda v: v == 16_384)
    user: str | None = Field(default=None, exclude_if=is_empty)
    context: dict[str, Any] = Field(default_factory=dict[str, Any], exclude_if=is_empty)
    stream: bool = Field(default=True, exclude_if=lambda v: v is True)
    checked: bool = Field(default=False, exclude_if=is_empty)
    """True when the hooks before the call have been asked already."""
    writes: bool = Field(default=False, exclude_if=is_empty)
    """True when the effect of the tool, as the run has pinned it, is `write`."""
    attempts: int = Field(default=3, exclude_if=lambda v: v == 3)
    """Attempts that may fail, as the run has pinned them: `ToolRetry.attempts`."""
    earlier_attempts: int = Field(default=0, exclude_if=is_empty)
    """Attempts before the activity's first one: see `perdure.wire.identity`."""
    # From the pinned spec: a worker with another version of the tool must not judge the call by its own settings.
    timeout: timedelta = Field(default=_TOOL_TIMEOUT, exclude_if=lambda v: v == _TOOL_TIMEOUT)
    remembered: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Greatest age of an earlier result that may stand in for a failed call; None: none may."""
    hooks: tuple[HookPoint, ...] = Field(default=(), exclude_if=is_empty)
    """Points at which hooks are asked about this call."""
    mcp: McpSource | None = Field(default=None, exclude_if=lambda v: v is None)
    """The server's tool, as the run has pinned it; None: the tool is a function."""


class RemoteArguments(dict[str, Any]):
    """First argument of a remote tool."""

    for_any_client: ClassVar[bool] = True


class RemoteContext(Value):
    """Second argument of a remote tool."""

    for_any_client: ClassVar[bool] = True
    run_id: str
    call_id: str
    idempotency_key: str
    agent: str
    user: str | None = None
    context: dict[str, Any] = Field(default_factory=dict[str, Any])
    earlier_attempts: int = 0
    """Attempts before the activity's first one: see `perdure.wire.identity`."""


class ToolOutcome(Value):
    """Outcome of a tool call: always a result for the model; a failure is a result with its text."""

    result: ToolResult
    arguments: dict[str, Any] | None = Field(default=None, exclude_if=is_empty)
    """Arguments that a hook has set in place of the model's."""
    ask: str | None = Field(default=None, exclude_if=is_empty)
    """Reason for which a hook wants a person to decide; the tool was not called."""
    end_turn: str | None = Field(default=None, exclude_if=is_empty)
    """Answer with which a hook ends the turn."""


class Progress(Value):
    """Heartbeat of a call: its partial state, for watchers and for the next attempt.

    `text` is a window into the visible answer that starts at character `offset`.
    """

    call: str
    """Id of the call: "step-3" for a model call, "call-3-1" for a tool call."""
    attempt: int
    seq: int
    offset: int = 0
    text: str = ""
    note: str = ""
    """Progress that the tool itself reports."""
    spent: Usage = Usage()
    """Usage of this attempt and those before it: it is billed even if the worker dies now."""
    at_most: Usage | None = Field(default=None, exclude_if=is_empty)
    """The same, if nothing more is heard of this attempt: an upper bound. None: it is over, or not yet sent."""
    unheard: int = Field(default=0, exclude_if=is_empty)
    """Attempts that `spent` does not count: earlier ones of which nothing was heard, and this one before it is sent."""
    unrecorded: Usage = Field(default=Usage(), exclude_if=lambda v: v == Usage())
    """Usage that no metric has, if nothing more is heard of this attempt: the next one records it."""
    may_have_effect: bool = Field(default=False, exclude_if=is_empty)
    """True when this attempt of a tool call, or an earlier one, may have had its effect."""
    failures: int = Field(default=0, exclude_if=is_empty)
    """Attempts that have failed so far. An attempt whose worker died or was stopped is none of them."""
    checked: "CheckedCall | None" = Field(default=None, exclude_if=is_empty)
    """Verdict of the hooks before the call: the next attempt does not ask them again."""
    untried: bool = Field(default=False, exclude_if=is_empty)
    """True when this attempt and all before it met only workers that do not serve what is called."""


class CheckedCall(Value):
    """Tool call after the hooks before it, or after it."""

    call_id: str
    arguments: dict[str, Any] | None = Field(default=None, exclude_if=is_empty)
    """Arguments in place of the model's."""
    deny: str | None = Field(default=None, exclude_if=is_empty)
    """Text of the error result that the model gets instead."""
    ask: str | None = Field(default=None, exclude_if=is_empty)
    """Reason for which a person must decide."""
    end_turn: str | None = Field(default=None, exclude_if=is_empty)
    """Answer with which the turn ends."""
    text: str | None = Field(default=None, exclude_if=is_empty)
    """Text in place of the result's."""
    records: list[HookRecord] = Field(default_factory=list[HookRecord], exclude_if=is_empty)


class HookInput(Value):
    """Input of `run_hooks`: calls before or after they are made, or a run at its start or end."""

    agent: str
    point: HookPoint
    step: int = 0
    user: str | None = Field(default=None, exclude_if=is_empty)
    context: dict[str, Any] = Field(default_factory=dict[str, Any], exclude_if=is_empty)
    calls: list[ToolCall] = Field(default_factory=list[ToolCall], exclude_if=is_empty)
    carriers: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Carrier of each call: "function", "mcp", "remote", "agent" or "handoff"."""
    unpinned: bool = Field(default=False, exclude_if=is_empty)
    """True when a redrive has taken the hooks at this point away: nobody is asked."""
    results: list[ToolResult] = Field(default_factory=list[ToolResult], exclude_if=is_empty)
    """Result of each call, after it was made."""
    message: Message | None = Field(default=None, exclude_if=is_empty)
    output: Any = Field(default=None, exclude_if=lambda v: v is None)
    stop_reason: str = Field(default="", exclude_if=is_empty)


class HookOutcome(Value):
    """Outcome of `run_hooks`."""

    calls: list[CheckedCall] = Field(default_factory=list[CheckedCall], exclude_if=is_empty)
    end_turn: str | None = Field(default=None, exclude_if=is_empty)
    is_replaced: bool = Field(default=False, exclude_if=is_empty)
    output: Any = Field(default=None, exclude_if=lambda v: v is None)
    """Output in place of the run's, when `is_replaced`."""


class Asker(Value):
    """Facts of a run's request by which its instructions are made."""

    user: str | None = Field(default=None, exclude_if=is_empty)
    roles: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    context: dict[str, Any] = Field(default_factory=dict[str, Any], exclude_if=is_empty)


class ResolveRequest(Value):
    """Input of `resolve_agent`."""

    agent: str
    as_of: datetime
    """Time whose prices apply."""
    cost_limited: bool = Field(default=False, exclude_if=is_empty)
    """True when the request bounds the cost: the price of every model must be known."""
    parent: str | None = Field(default=None, exclude_if=is_empty)
    """Workflow id of the run that pinned the spec; it is queried when this worker has another spec."""
    spec_digest: str | None = Field(default=None, exclude_if=is_empty)
    """`full_digest` of the pinned spec."""
    model: str | None = Field(default=None, exclude_if=is_empty)
    """Model that becomes the first of the chain, in place of the agent's own."""
    asker: Asker | None = Field(default=None, exclude_if=is_empty)
    """For whom instructions are made; None until a worker has said that they depend on it."""
    layout: int = 1
    """Layout in which the run would write its history, see `ResolvedAgent`."""


class NodeCall(Value):
    """Call of a function that is a node of a graph."""

    graph: str
    node: str
    key: str
    input: dict[str, Any]
    """A `perdure.graph.NodeInput`."""
    earlier_attempts: int = Field(default=0, exclude_if=is_empty)
    """Attempts before the activity's first one: see `perdure.wire.identity`."""


class KeepText(Value):
    """Text that is too long for the model and goes to the blob store."""

    text: str
    preview_bytes: int


class KeptText(Value):
    """Beginning of a kept text, as the model sees it."""

    shown: str
    spilled: str | None = None
    """Name of the whole text in the blob store; None when nothing was cut."""


class BindArguments(Value):
    """Arguments of a tool call that a person has edited."""

    agent: str
    tool: str
    arguments: dict[str, Any]
    input_schema: dict[str, Any]
    """Pinned schema of the tool: a worker with another version of it says nothing about the arguments."""
    resource: str | None = None


class BoundArguments(Value):
    """Edited arguments as the function reads them, or the problem with them."""

    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    problem: str = ""


class EarlierChild(Value):
    """Run that has the id which a child is to get."""

    run_id: str


class Remember(Value):
    """Earlier run whose transcript another run is to remember."""

    run_id: str
    visit: int
    parent_id: str
    """Parent of the run that remembers, as the server names it. The earlier run must have the same."""


class Remembered(Value):
    """Messages of an earlier run, with call ids of their own."""

    messages: list[Message]


class Rebuild(Value):
    """Part of the state of the closed execution from which a run goes on."""

    execution_id: str
    part: int = 0
    parent_id: str | None = Field(default=None, exclude_if=is_empty)
    """Parent of the run that goes on, as the server names it. The closed execution must have the same."""


class CarriedPart(Value):
    """Argument of continue-as-new, as the closed execution would have carried it."""

    argument: Any
    parts: int
    """Number of all parts."""
    closed_at: datetime | None = Field(default=None, exclude_if=is_empty)
    """End of the closed execution, by the server's clock."""
    executions: dict[str, str] = Field(default_factory=dict[str, str], exclude_if=is_empty)
    """Newest execution of each run below that was cut short with the run, by its workflow id."""
    cut_short: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """Workflow ids of those runs."""


class Relay(Value):
    """Update for another run of the tree."""

    run_id: str
    update: str
    argument: Any
