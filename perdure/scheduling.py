"""Schedulers: the part of a team that chooses which node runs next, and the values that it returns. Pure.

A team is a run that only directs others: a swarm, a graph, or a pattern of your own (see `perdure.pattern`). The
engine keeps what all teams share: time, money, people, the end. A scheduler knows the course alone. Everything that
it must remember is in its progress, a frozen value that history can hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import JsonValue, TypeAdapter

from perdure.messages import Message, Part
from perdure.wire.results import Failure, HandedOn, NodeResult, StopReason
from perdure.wire.spec import NodeKind
from perdure.wire.tree import Peer

Progress = TypeVar("Progress")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Earlier run of the same team whose transcript comes before a prompt."""

    key: str
    """Key of the earlier run, which has ended."""
    visit: int
    """Number of that run in the team, from 1."""
    prompt: str | list[Part]
    """Prompt in place of the usual one: the model has read what the earlier run was told."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A node to run now."""

    key: str
    """Unique in the run: node, visit, and attempt when it is not the first: "draft-2", "draft-2.1"."""
    node: str
    kind: NodeKind = "agent"
    """Kind of the member. Of a pattern, the engine fills it in."""
    member: str | None = None
    """Name of the agent, swarm or graph to run; None for a function."""
    prompt: str | list[Part] = ""
    timeout: timedelta | None = None
    history: tuple[Message, ...] = ()
    """Messages before the prompt."""
    memory: Memory | None = None
    """Earlier run to remember, in place of `history`. If it cannot be read any more, the run begins without it."""
    visit: int = 1
    retry_of: str = ""
    """Key of the first attempt, when the node is run again: its calls get the idempotency keys of that attempt."""
    attempt: int = 1
    """Number of the attempt, from 1."""
    peers: tuple[Peer, ...] = ()
    """Agents that the node may hand off to."""
    inputs: dict[str, object] = field(default_factory=dict[str, object])
    """For a function: outputs of the nodes that led to it, by name."""
    handed_on: HandedOn | None = None
    """What the run before it leaves to this one. The engine fills it in."""

    @property
    def act(self) -> str:
        """Logical name of what is done: the key of the first attempt."""
        return self.retry_of or self.key

    @property
    def earlier_attempts(self) -> int:
        """Number of attempts before this one."""
        return max(self.attempt - 1, 1 if self.retry_of else 0)


@dataclass(frozen=True, kw_only=True)
class Over:
    """End of a team once nothing is running. With `failure` set, it failed."""

    stop_reason: StopReason
    output: object = None
    failure: Failure | None = None
    cancel_running: bool = False
    """True: running nodes are cancelled, not waited for."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Remarks of a scheduler for the run's status and result."""

    shared_context: dict[str, dict[str, JsonValue]] = field(default_factory=dict[str, dict[str, JsonValue]])
    """Values that agents gave each other, by agent."""
    unmet: dict[str, str] = field(default_factory=dict[str, str])
    """Nodes that never ran, and why."""


class Scheduler(Protocol[Progress]):
    """Choice of the next nodes, made for one spec.

    Contract
    1. All methods are pure and deterministic: no clock, no chance, no I/O. Workflows run them, and replay them.
    2. `startable` returns nodes in the order in which they are to start. The team starts as many of the first ones
       as it can pay for, and reports them with `record_start`.
    3. `record_end` is called once for each started node. A result of an unknown key changes nothing.
    4. The team ends when `over` returns a value and nothing is running.

    A scheduler that inherits from this class need not write `runs_alone` and `notes`.
    """

    progress_type: ClassVar[Any]
    """Type of the progress, a frozen dataclass or pydantic model: continue-as-new carries it as JSON."""
    runs_alone: ClassVar[bool] = False
    """True when at most one node runs at any time: then it may spend all that the team has."""

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> Progress:
        """Return the progress of a team that has just been given its task."""
        ...

    def startable(self, progress: Progress) -> Sequence[Start]:
        """Return the nodes to start now."""
        ...

    def record_start(self, progress: Progress, starts: Sequence[Start]) -> Progress:
        """Return the progress once these nodes are running."""
        ...

    def record_end(self, progress: Progress, result: NodeResult) -> Progress:
        """Return the progress after a node ended."""
        ...

    def over(self, progress: Progress) -> Over | None:
        """Return the end, or None while the team goes on."""
        ...

    def partial(self, progress: Progress) -> Any:
        """Return the best output so far, for a team that is ended from outside."""
        ...

    def notes(self, progress: Progress) -> Notes:
        """Return remarks for status and result."""
        return Notes()


@lru_cache(maxsize=256)
def progress_adapter(progress_type: Any) -> TypeAdapter[Any]:
    """Return the adapter between plans of a type and JSON.

    Workers make it when they start, for patterns: in a workflow the user's module, where names of types are looked
    up, cannot be seen.
    """
    return TypeAdapter(progress_type)
