"""Values that cross between a run and the child runs that it starts: lineage, lease, reports and grants.

A child gets a lease: an amount that it may spend without asking. It requests more when the lease runs
short, returns what it can spare while it waits for people, and frees the rest by ending. So the sum over
a tree never passes its limits, and small children send no message about budgets at all.
"""

from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from perdure.messages import Message, Part, Usage, Value, is_empty
from perdure.wire.requests import ExtendRequest
from perdure.wire.results import RunResult, StopReason, Waiting

_MOST: Final = 2**53
"""Largest amount: larger numbers are not exact in every language, and no run needs them."""

_Number = Annotated[int, Field(ge=0), AfterValidator(lambda number: min(number, _MOST))]
"""Number of an amount. One that is too large becomes the largest: sums are made where nothing may be refused."""


class Amount(Value):
    """An amount of everything that limits bound; None is no bound."""

    # 0 and None differ here (nothing left, and no bound), so only None is left out of the JSON.
    # Bounded, because a signal from anybody may bring one: a negative grant would lend what nobody has.
    cost_microusd: _Number | None = Field(default=None, exclude_if=lambda v: v is None)
    input_tokens: _Number | None = Field(default=None, exclude_if=lambda v: v is None)
    output_tokens: _Number | None = Field(default=None, exclude_if=lambda v: v is None)
    total_tokens: _Number | None = Field(default=None, exclude_if=lambda v: v is None)
    tool_calls: _Number | None = Field(default=None, exclude_if=lambda v: v is None)
    per_tool: dict[str, _Number] = Field(default_factory=dict[str, int], exclude_if=is_empty)
    """Calls of each tool that is bounded, by its name."""


class Spent(Value):
    """Sums of a run, and of those of its children that have ended, when it reported."""

    usage: Usage = Usage()
    cost_microusd: _Number | None = Field(default=0, exclude_if=lambda v: v == 0)
    """None: a model was used whose price is not known."""
    tool_calls: _Number = Field(default=0, exclude_if=is_empty)
    per_tool: dict[str, _Number] = Field(default_factory=dict[str, int], exclude_if=is_empty)
    """Calls of tools that the lease bounds."""
    steps: _Number = Field(default=0, exclude_if=is_empty)


class Peer(Value):
    """An agent of the swarm that the run can hand off to."""

    name: str
    description: str = ""
    barred: StopReason | None = Field(default=None, exclude_if=is_empty)
    """Limit that rules out a handoff to this peer; such a handoff ends the turn with this reason."""


class Handoff(Value):
    """Output of a run that ends with the stop reason `handoff`."""

    agent_name: str
    message: str
    context: dict[str, object] = Field(default_factory=dict[str, object])


class EarlierRun(Value):
    """Run whose transcript comes before the prompt of another run of the same team."""

    run_id: str
    """Workflow id of the earlier run."""
    visit: int
    """Number of that run in its team: it tells its call ids from those of other runs."""
    prompt: str | list[Part]
    """Prompt in place of the request's, once the transcript is there."""


class Lineage(Value):
    """Place of a run below another: whose child it is, and where its spec is pinned."""

    parent: str
    """Workflow id of the parent: it receives reports, and serves the child's spec."""
    parent_execution_id: str = ""
    """First execution id of the parent. A rerun of the same id ignores the reports of older children."""
    key: str
    """Key of the child within its parent."""
    path: list[str] = Field(default_factory=list[str])
    """Keys from the root to the child."""
    spec_digest: str
    """`full_digest` of the spec that the parent pinned for the child."""
    as_of: datetime
    """Time at which the root was resolved: prices are those of that day."""
    identity: str = ""
    """Identity of the child, from which its idempotency keys are made: see `perdure.wire.identity`."""
    earlier_attempts: int = Field(default=0, exclude_if=is_empty)
    """Attempts of the child's calls that came before it: in earlier attempts of its node, or before a reset."""


class Lease(Value):
    """Amount that a run and all below it may spend until it asks again."""

    lender: str
    """Workflow id of the lender: today always the parent. Requests go to `lineage.parent`, not to this id."""
    amount: Amount = Amount()
    per_tool_ends: bool = Field(default=False, exclude_if=is_empty)
    """True: a run ends that has used up its calls of a tool in `amount`; False: it goes on without the tool."""


class ChildInput(Value):
    """Second argument of a run that another run started: where it belongs, and what it may spend."""

    lineage: Lineage
    lease: Lease
    deadline_at: datetime | None = None
    """Deadline from above that counts all time."""
    deadline_reason: StopReason = "deadline"
    clock_at: datetime | None = Field(default=None, exclude_if=is_empty)
    """Deadline of this run that counts no time in which it waits for people alone."""
    grace: timedelta = timedelta(milliseconds=1500)
    """Time in which the child must end after its parent cancels it."""
    peers: list[Peer] = Field(default_factory=list[Peer], exclude_if=is_empty)
    """Agents that the child can hand off to; with any, its model gets the handoff tool."""
    history: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """Messages that come before its prompt."""
    remembers: EarlierRun | None = Field(default=None, exclude_if=lambda v: v is None)
    """Run whose transcript comes before its prompt, in place of `history`. The child fetches it as it begins."""
    extension: ExtendRequest | None = Field(default=None, exclude_if=is_empty)
    """With a value: the child goes on from this closed execution of its own id."""
    unread: list[Message] = Field(default_factory=list[Message], exclude_if=is_empty)
    """Messages that the run before it has not read: they come after the prompt."""
    reads_results: bool = Field(default=False, exclude_if=is_empty)
    """True when its prompt names results that `read_result` reads on in."""


class BudgetRequest(Value):
    """More budget that a child asks its parent for."""

    minimum: Amount
    """Without this much more the child cannot go on."""
    preferred: Amount
    """With this much it need not ask again soon; at least the minimum."""


# The whole state each time, not a change: so a report that is lost or repeated does no harm.
class Report(Value):
    """State of a child, for its parent. A newer report replaces the older one as a whole."""

    key: str
    parent_execution_id: str = ""
    waiting: list[Waiting] = Field(default_factory=list[Waiting])
    """Calls and runs that wait for a person, in the child and below it, with the path from the child."""
    request: BudgetRequest | None = None
    idle: bool = False
    """True when the child only waits for people: it frees nothing of its lease before they answer."""
    people_since: datetime | None = Field(default=None, exclude_if=is_empty)
    """Since when the child, with all runs below it, waits for approvals and answers alone."""
    returned: Amount | None = None
    """Part of its lease that the child gives back."""
    spent: Spent | None = Field(default=None, exclude_if=is_empty)
    """What the child had spent. It is booked if nobody hears of the child again."""
    final: RunResult | None = None
    """Result of a child that is being cancelled. Temporal keeps no result of a cancelled run."""


class Grant(Value):
    """Answer of a parent to a budget request."""

    amount: Amount | None = None
    """Budget added to the lease; None: nothing is left, now or later."""
    tools: list[str] = Field(default_factory=list[str], exclude_if=is_empty)
    """With `amount` None: only calls of these tools are not left. Other requests may be met."""
