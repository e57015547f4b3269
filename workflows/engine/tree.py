"""Place of a run in its tree: its lineage, its lease, and what each of its children may spend.

Rules
1. A run may spend the smaller of its own limits and its lease. Its own spending (ended children included) and
   the leases of its living children are taken from that; the rest is left.
2. A child's lease is taken out of what is left before the child has it. So the sum never passes the limits.
3. A budget request that cannot be met waits as long as somebody may still give something back. When nobody can,
   the newest request is refused, one at a time: the refused run ends, and what it held is free. A request that
   lacks only calls of single tools is refused by itself: its run goes on without these tools.
4. A run asks its lender when its lease, and not its own limits, stops it. Today the lender is always the parent;
   a budget of a user or a month would be the lender of a root.

Files about money and trees
- `amounts`: arithmetic of amounts. It knows no state.
- `tree` (this file): leases and requests of one run and its children. It knows amounts, and no state.
- `account`: limits and spending of any run's state, as amounts.
- `budget`: limits of an agent's model calls.
- `family`: events and commands about parent and children, the same for all programs.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from perdure.messages import Usage
from perdure.wire.results import RunResult, StopReason, Waiting
from perdure.wire.tree import Amount, BudgetRequest, ChildInput, Grant, Lineage, Peer, Report, Spent

from .amounts import at_most, between, is_bounded, is_something, least, minus, missing, plus, share, total

GRACE = timedelta(milliseconds=1500)
"""Time in which cancelled work may report its last values, at the root."""
_GRACE_STEP = timedelta(milliseconds=200)
_SHORTEST_GRACE = timedelta(milliseconds=300)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A run that this run started and that has not ended."""

    key: str
    name: str
    run_id: str
    lease: Amount = Amount()
    request: BudgetRequest | None = None
    """Its pending budget request."""
    report_number: int = 0
    """Order of its newest report, as a number that grows."""
    waiting: tuple[Waiting, ...] = ()
    idle: bool = False
    """True while it only waits for people, and has returned what it could."""
    people_since: datetime | None = None
    """Since when it, with all runs below it, waits for approvals and answers alone."""
    spent: Spent | None = None
    """What it had spent when it reported; None: it has not reported."""
    final: RunResult | None = None


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """Amount that the run and all below it may spend until it asks again."""

    lender: str | None = None
    """Workflow id of the lender; None: nothing was lent, only the limits bound the run.

    Today it is always the parent: requests travel in reports to `lineage.parent`, and nothing uses this as an address.
    """
    amount: Amount = Amount()
    request: BudgetRequest | None = None
    """Newest request to the lender. Until it is answered, each report says it again."""
    is_asking: bool = False
    lender_is_short: bool = False
    """True after the lender gave less than was preferred: then only the minimum is asked for."""
    per_tool_ends: bool = False
    """True when a bound of a tool that the lender has set ends the run."""
    refused: bool = False
    """True when the lender has no more."""
    refused_tools: tuple[str, ...] = ()
    """Tools of which the lender has no more calls. It may have more of the rest."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Lineage, lease and children of a run."""

    lineage: Lineage | None = None
    """None for a root."""
    lease: LeaseState = LeaseState()
    deadline_at: datetime | None = None
    """Deadline that the parent set."""
    deadline_reason: StopReason = "deadline"
    grace: timedelta = GRACE
    """Time that this run waits for the last values of cancelled work: less than its parent waits for it."""
    peers: list[Peer] = field(default_factory=list[Peer])
    """Agents that the run may hand off to."""
    children: tuple[Child, ...] = ()
    reports: int = 0
    reported: tuple[str, ...] = ()
    """Who waits for a person, as the parent knows it."""

    @property
    def path(self) -> list[str]:
        """Keys from the root to this run."""
        return self.lineage.path if self.lineage else []

    def child(self, key: str) -> Child | None:
        """Return the living child of that key."""
        return next((child for child in self.children if child.key == key), None)


def tree_of(child_input: ChildInput | None) -> Tree:
    """Return the tree of a run that begins."""
    if child_input is None:
        return Tree()
    lent = child_input.lease
    lease = LeaseState(lender=lent.lender, amount=lent.amount, per_tool_ends=lent.per_tool_ends)
    return Tree(
        lineage=child_input.lineage,
        lease=lease,
        deadline_at=child_input.deadline_at,
        deadline_reason=child_input.deadline_reason,
        # Each level waits less than the one above, so last values reach the root in time.
        grace=max(child_input.grace - _GRACE_STEP, _SHORTEST_GRACE),
        peers=child_input.peers,
    )


def held_by_children(tree: Tree) -> Amount:
    """Return the sum of the living children's leases."""
    return total(child.lease for child in tree.children)


def remaining_amount(tree: Tree, limits: Amount, spent: Amount) -> Amount:
    """Return the amount that the run may still spend, or lease to children."""
    return minus(least(limits, tree.lease.amount), spent, held_by_children(tree))


def shortage(tree: Tree, limits: Amount, spent: Amount, wanted: Amount) -> tuple[Amount | None, bool]:
    """Return the missing part of the wanted amount, and whether the lender could give it."""
    short = missing(wanted, remaining_amount(tree, limits, spent))
    if short is None:
        return None, False
    # The lender cannot help where the run's own limits are too small.
    own = missing(wanted, minus(limits, spent, held_by_children(tree)))
    is_refused = tree.lease.refused or any(name in tree.lease.refused_tools for name in short.per_tool)
    return short, own is None and not is_refused


def lease_for(tree: Tree, limits: Amount, spent: Amount, starting: int, *, alone: bool) -> Amount:
    """Return the lease of each of so many starting children: everything, when nobody else will need any."""
    available = remaining_amount(tree, limits, spent)
    if starting == 1 and alone and not tree.children:
        return available
    # Half stays here, for those that turn out to need more.
    return share(available, 2 * (starting + len(tree.children)))


def add_child(tree: Tree, child: Child) -> Tree:
    """Return the tree with one child more."""
    return replace(tree, children=(*tree.children, child))


def remove_child(tree: Tree, key: str) -> Tree:
    """Return the tree without the child; its lease is free."""
    return replace(tree, children=tuple(child for child in tree.children if child.key != key))


def outcome_of(child: Child, outcome: RunResult) -> RunResult:
    """Return the outcome to book for a child that ended.

    Temporal keeps no result of a cancelled run: then its last report counts. A child of which nobody hears again is
    booked with its whole lease, so that no bound is passed. Where the lease has no bound, its last report counts if
    it has spent nothing since; else its cost is unknown.
    """
    if outcome.stop_reason == "cancelled" and child.final is not None:
        return child.final
    # A run that Temporal ended could not report. An upper bound is the only safe booking.
    lost = outcome.error is not None and outcome.error.kind in ("Terminated", "TimedOut")
    if not lost and not (outcome.stop_reason == "cancelled" and outcome.usage.estimated):
        return outcome
    lease, spent = child.lease, child.spent or Spent()
    known = spent.cost_microusd if child.idle else None
    return outcome.model_copy(
        update={
            "cost_microusd": known if lease.cost_microusd is None else lease.cost_microusd,
            "usage": _largest_usage(lease, spent.usage),
            "tool_calls": max(lease.tool_calls or 0, spent.tool_calls),
            "per_tool": {**spent.per_tool, **lease.per_tool},
            "steps": max(outcome.steps, spent.steps),
        }
    )


def _largest_usage(lease: Amount, spent: Usage) -> Usage:
    """Return all tokens that a lease allows, and no less than what was reported.

    A bound on the sum of input and output alone is booked on the side that has no bound of its own.
    """
    read, written, total_tokens = lease.input_tokens, lease.output_tokens, lease.total_tokens or 0
    if read is None:
        read = max(total_tokens - (written or 0), 0)
    elif written is None:
        written = max(total_tokens - read, 0)
    more = max(read - spent.all_input_tokens, 0)
    return spent.model_copy(
        update={
            "input_tokens": spent.input_tokens + more,
            "output_tokens": max(written or 0, spent.output_tokens),
            "estimated": True,
        }
    )


def apply_report(tree: Tree, report: Report) -> Tree:
    """Return the tree after a child's report. A report of an ended child changes nothing."""
    child = tree.child(report.key)
    if child is None:
        return tree
    # What a child gives back is free at once. The rest stays its own until it ends.
    lease = child.lease if report.returned is None else minus(child.lease, report.returned)
    changed = replace(
        child,
        waiting=tuple(report.waiting),
        idle=report.idle,
        people_since=report.people_since,
        lease=lease,
        request=report.request,
        report_number=tree.reports + 1,
        spent=report.spent or child.spent,
        final=report.final or child.final,
    )
    return replace(_with_child(tree, changed), reports=tree.reports + 1)


def _with_child(tree: Tree, changed: Child) -> Tree:
    children = tuple(changed if child.key == changed.key else child for child in tree.children)
    return replace(tree, children=children)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Grants for children that asked, and the request that must go to the lender first."""

    grants: tuple[tuple[str, Grant], ...] = ()
    request: BudgetRequest | None = None


def answer_requests(tree: Tree, limits: Amount, spent: Amount, *, busy: bool) -> Answers:
    """Answer the children's budget requests, oldest first by the newest report of each child.

    `busy`: the run itself may still give something back.
    """
    asking = sorted(
        (child for child in tree.children if child.request is not None), key=lambda c: c.report_number
    )
    grants: list[tuple[str, Grant]] = []
    lacking_tools: list[Child] = []
    for child in asking:
        assert child.request is not None
        # Asked anew for each child: the grant before has made it less.
        available = remaining_amount(tree, limits, spent)
        short = missing(child.request.minimum, available)
        if short is not None and short == Amount(per_tool=short.per_tool):
            lacking_tools.append(child)  # the others need not wait for calls of a tool that they do not want
            continue
        if short is not None:
            return _answers_when_short(tree, limits, spent, child.request, tuple(grants), busy=busy)
        amount = _grant_for(tree, child.request, available)
        tree = apply_child_grant(tree, child.key, amount)
        grants.append((child.key, Grant(amount=amount)))
    if grants or not lacking_tools:
        return Answers(grants=tuple(grants))
    return _answers_without_tools(tree, limits, spent, lacking_tools)


def _answers_without_tools(tree: Tree, limits: Amount, spent: Amount, lacking: list[Child]) -> Answers:
    """Answer children that lack only calls of single tools: nobody ends for them, because they go on without."""
    for child in lacking:
        assert child.request is not None
        minimum = child.request.minimum
        short, lender_could = shortage(tree, limits, spent, minimum)
        if short is not None and lender_could:
            return Answers(
                request=None if tree.lease.is_asking else BudgetRequest(minimum=short, preferred=short)
            )
        tools = missing(minimum, remaining_amount(tree, limits, spent)) or Amount()
        if not any(_may_return(sibling, tools) for sibling in tree.children if sibling.key != child.key):
            return Answers(grants=((child.key, Grant(tools=sorted(tools.per_tool))),))
    return Answers()


def _may_return(child: Child, tools: Amount) -> bool:
    """Return whether the child holds calls of these tools, and may give them back by itself."""
    held = any(child.lease.per_tool.get(name) for name in tools.per_tool)
    return held and child.request is None and not child.idle


def _grant_for(tree: Tree, request: BudgetRequest, available: Amount) -> Amount:
    most = available if len(tree.children) == 1 else share(available, 2 * len(tree.children))
    return between(request.minimum, request.preferred, most)


def _answers_when_short(
    tree: Tree,
    limits: Amount,
    spent: Amount,
    request: BudgetRequest,
    grants: tuple[tuple[str, Grant], ...],
    *,
    busy: bool,
) -> Answers:
    short, lender_could = shortage(tree, limits, spent, request.minimum)
    if short is not None and lender_could:
        preferred = missing(request.preferred, remaining_amount(tree, limits, spent)) or short
        if tree.lease.is_asking:
            return Answers(grants=grants)
        return Answers(grants=grants, request=BudgetRequest(minimum=short, preferred=preferred))
    # A child that asks, or only waits for people, gives nothing back by itself.
    others_may_return = any(
        sibling.request is None and not sibling.idle and is_something(sibling.lease)
        for sibling in tree.children
    )
    if grants or others_may_return or busy:
        return Answers(grants=grants)
    asking = (sibling for sibling in tree.children if sibling.request is not None)
    # The newest request, so that earlier ones are served. The end of the refused run frees its lease.
    newest = max(asking, key=lambda sibling: sibling.report_number)
    return Answers(grants=((newest.key, Grant()),))


def apply_child_grant(tree: Tree, key: str, amount: Amount | None) -> Tree:
    """Return the tree after a child's request was answered."""
    child = tree.child(key)
    if child is None:
        return tree
    lease = child.lease if amount is None else plus(child.lease, amount)
    return _with_child(tree, replace(child, lease=lease, request=None))


def mark_requested(tree: Tree, request: BudgetRequest) -> Tree:
    """Return the tree after the lender was asked for more."""
    return replace(tree, lease=replace(tree.lease, is_asking=True, request=request))


def apply_grant(tree: Tree, grant: Grant) -> Tree:
    """Return the tree after the lender answered. A grant that nobody asked for changes nothing."""
    lease = tree.lease
    # Whoever may signal a run may write a grant: it never gives more than the run has asked for.
    if not lease.is_asking or lease.request is None:
        return tree
    if grant.tools:
        refused_tools = tuple(sorted({*lease.refused_tools, *grant.tools}))
        return replace(tree, lease=replace(lease, is_asking=False, refused_tools=refused_tools))
    if grant.amount is None:
        return replace(tree, lease=replace(lease, is_asking=False, refused=True))
    less = missing(lease.request.preferred, grant.amount) is not None
    amount = plus(lease.amount, at_most(grant.amount, lease.request.preferred))
    changed = replace(lease, is_asking=False, lender_is_short=lease.lender_is_short or less, amount=amount)
    return replace(tree, lease=changed)


def waiting_below(tree: Tree) -> list[Waiting]:
    """Return who waits for a person below this run, each with the path from it."""
    return [
        waiting.model_copy(update={"path": [child.key, *waiting.path]})
        for child in tree.children
        for waiting in child.waiting
    ]


def drop_waiting(tree: Tree, run_id: str, call_id: str) -> Tree:
    """Return the tree without this call of a run below among those that wait for a person."""
    for child in tree.children:
        kept = tuple(item for item in child.waiting if (item.run_id, item.call_id) != (run_id, call_id))
        if kept != child.waiting:
            tree = _with_child(tree, replace(child, waiting=kept))
    return tree


def idle_lease(tree: Tree, limits: Amount, spent: Amount) -> Amount | None:
    """Return the amount that a run which only waits for people can give back, or None."""
    working = any(not child.idle for child in tree.children)
    lease = tree.lease
    if lease.lender is None or lease.is_asking or working or not is_bounded(lease.amount):
        return None
    # The run's own limits do not matter here: only a lease can be given back.
    spare = minus(lease.amount, spent, held_by_children(tree))
    return spare if is_something(spare) else None


def mark_reported(tree: Tree, waiting: tuple[str, ...], returned: Amount | None) -> Tree:
    """Return the tree after a report to the parent. A returned amount may be asked for again."""
    tree = replace(tree, reported=waiting)
    if returned is None:
        return tree
    amount = minus(tree.lease.amount, returned)
    lease = replace(tree.lease, amount=amount, lender_is_short=False, refused=False, refused_tools=())
    return replace(tree, lease=lease)
