"""What a swarm or graph wants run next: values that its scheduler gives and its shell carries out."""

from dataclasses import dataclass, field
from datetime import timedelta

from perdure.messages import Message, Part
from perdure.wire.results import Failure, StopReason
from perdure.wire.spec import NodeKind
from perdure.wire.tree import Peer


@dataclass(frozen=True, kw_only=True)
class Start:
    """A node to run now."""

    key: str
    """Unique in the run: node, visit, and attempt when it is not the first: "draft-2", "draft-2.1"."""
    node: str
    kind: NodeKind
    member: str | None = None
    """Name of the agent, swarm or graph to run; None for a function."""
    prompt: str | list[Part] = ""
    timeout: timedelta | None = None
    history: tuple[Message, ...] = ()
    visit: int = 1
    peers: tuple[Peer, ...] = ()
    inputs: dict[str, object] = field(default_factory=dict[str, object])
    """For a function: outputs of the nodes that led to it, by name."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """How it ends once nothing is in flight. With `failure` set, it failed."""

    stop_reason: StopReason
    output: object = None
    failure: Failure | None = None
    cancel_running: bool = False
    """What is in flight is to be called back, not waited for."""
