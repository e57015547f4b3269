"""What crosses between a run and the runs it starts: what a child is given, says, and asks for.

A child gets a lease: an amount that it may spend without asking. It asks for more when that does
not do, gives back what it does not need while it waits for people, and what is left when it ends
goes back by itself. So the sum over a tree never passes its limits, and small children cost no
message at all.
"""

from datetime import datetime, timedelta

from pydantic import Field

from perdure.messages import Message, Value, is_empty
from perdure.wire.results import RunResult, StopReason, Waiting


class Amount(Value):
    """So much of everything that limits bound; None is no bound."""

    cost_microusd: int | None = Field(default=None, exclude_if=lambda v: v is None)
    input_tokens: int | None = Field(default=None, exclude_if=lambda v: v is None)
    output_tokens: int | None = Field(default=None, exclude_if=lambda v: v is None)
    total_tokens: int | None = Field(default=None, exclude_if=lambda v: v is None)
    tool_calls: int | None = Field(default=None, exclude_if=lambda v: v is None)


class Peer(Value):
    """An agent of the swarm that can be handed to."""

    name: str
    description: str = ""
    barred: StopReason | None = Field(default=None, exclude_if=is_empty)
    """Why it cannot be handed to any more; a handoff to it ends the turn with that reason."""


class Handoff(Value):
    """What a run that ends with `handoff` gives as its output."""

    agent_name: str
    message: str
    context: dict[str, object] = Field(default_factory=dict[str, object])


class Branch(Value):
    """What a run is given that another run started."""

    parent: str
    """Workflow id of the run that started it; reports go there, and its spec is asked there."""
    family: str = ""
    """Which execution of that id it was: a rerun knows nothing of the children of the one before."""
    key: str
    """What the parent calls it."""
    path: list[str] = Field(default_factory=list[str])
    """From the root to it."""
    pin: str
    """Digest of the spec that the parent pinned for it."""
    at: datetime
    """When the root was resolved: prices are of that day."""
    lease: Amount = Amount()
    deadline_at: datetime | None = None
    deadline_reason: StopReason = "deadline"
    grace: timedelta = timedelta(milliseconds=1500)
    """How long it may take to end when it is told to."""
    peers: list[Peer] = Field(default_factory=list[Peer], exclude_if=is_empty)
    """Whom it may hand off to; it gets the tool for that when there are any."""
    history: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """What was said before its prompt."""


class BudgetRequest(Value):
    """More budget that a child asks its parent for."""

    minimum: Amount
    """Without this much more the child cannot go on."""
    preferred: Amount
    """With this much it need not ask again so soon; at least the minimum."""


class Report(Value):
    """What a child tells its parent, each time the newest whole state of it."""

    key: str
    family: str = ""
    waiting: list[Waiting] = Field(default_factory=list[Waiting])
    """Who waits for a person in it and below, with the path from it."""
    request: BudgetRequest | None = None
    idle: bool = False
    """It only waits for people: nothing of what it holds will come back before they have spoken."""
    returned: Amount | None = None
    """It gives this much of its lease back."""
    final: RunResult | None = None
    """It is being cancelled: what it had, which Temporal keeps for no cancelled run."""


class Grant(Value):
    """The parent's answer to a need."""

    amount: Amount | None = None
    """So much more; None: there is no more, and never will be."""
