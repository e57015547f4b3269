"""State of a team: a swarm, a graph, or a pattern of one's own. The rules stand in `state`."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from perdure.messages import Message, Part
from perdure.scheduling import Start
from perdure.wire.results import HandedOn, NodeResult, NodeStatus

from .past import Cut
from .state import RunState


@dataclass(frozen=True, kw_only=True)
class Handover:
    """Leftovers of an ended run of a team for the run that takes over. The rules stand in `handovers`."""

    key: str
    """Key of the ended run."""
    target: str
    """Agent that it handed over to; empty: only another attempt of the same node takes over."""
    left: HandedOn
    missing: tuple[str, ...]
    """What it has left undone, if nobody takes over."""


@dataclass(frozen=True, kw_only=True)
class TeamState(RunState):
    """State of a swarm, a graph, or a pattern of one's own."""

    task: str | list[Part] = ""
    # Any, because the scheduler alone knows its type. Continue-as-new restores it by `progress_type`.
    progress: Any = None
    """Memory of the scheduler; None in a session before its first turn."""
    running: tuple[NodeStatus, ...] = ()
    results: tuple[NodeResult, ...] = ()
    member_of: dict[str, str] = field(default_factory=dict[str, str])
    """Name of the agent, swarm or graph that a node ran, by node."""
    conversation: tuple[Message, ...] = ()
    """Messages and answers of a session. A node is given the newest of them."""
    starts: tuple[Start, ...] = ()
    """Starts of the running nodes."""
    cut: Cut = Cut()  # noqa: RUF009 - a frozen value
    handovers: tuple[Handover, ...] = ()
    """What ended runs leave to others that have not started yet."""
    refused: tuple[str, ...] = ()
    """Newest calls that people have refused to agents which then handed over."""

    counts_steps: ClassVar[bool] = False
    reads_messages: ClassVar[bool] = False
    can_be_redriven: ClassVar[bool] = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation of a session. The transcripts of a team's work are those of its nodes' runs."""
        return self.conversation

    def with_messages(self, messages: tuple[Message, ...]) -> Self:
        """Return the state with these messages as its conversation."""
        return replace(self, conversation=messages)

    @property
    def unread_below(self) -> tuple[Message, ...]:
        """Messages to ended runs of nodes that no other run takes over."""
        return tuple(message for handover in self.handovers for message in handover.left.messages)

    @property
    def is_busy(self) -> bool:
        """True while a node runs."""
        return bool(self.running)

    @property
    def works_itself(self) -> bool:
        """True while a function of the graph runs: it has no run of its own."""
        return any(node.run_id is None for node in self.running)

    @property
    def activity(self) -> Literal["thinking", "acting"]:
        """Status of a team that waits for nobody."""
        return "acting"
