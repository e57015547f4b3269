"""A run's place in its tree: what it was given, whom it started, and what each of them may spend.

Rules
1. What a run may spend is the smaller of its own limits and its lease. Of that, what it has spent
   (its ended children included) and what its living children hold is gone; the rest is left.
2. A child's lease is taken out of what is left before the child has it. So the sum never passes.
3. A need that cannot be met waits as long as somebody may still give something back; when nobody
   can, the newest need is refused, one at a time: who is refused ends, and what it held is free.
4. A run asks its own parent when its lease, and not its own limits, is what holds it up.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from perdure.messages import Usage
from perdure.wire.results import RunResult, Waiting
from perdure.wire.tree import Amount, Branch, Grant, Report

from .amounts import NOTHING, between, is_bounded, is_something, least, minus, missing, plus, share

GRACE = timedelta(milliseconds=1500)
"""How long what is called back may take to say its last word, at the root."""
_GRACE_LESS = timedelta(milliseconds=200)
_GRACE_LEAST = timedelta(milliseconds=300)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A run that this one started and that has not ended."""

    key: str
    name: str
    run_id: str
    lease: Amount = Amount()
    need: Amount | None = None
    wish: Amount | None = None
    asked: int = 0
    """When it asked, as a number that grows."""
    waiting: tuple[Waiting, ...] = ()
    idle: bool = False
    """It waits for people, and has given back what it could."""
    final: RunResult | None = None


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What a run knows of its parent and children."""

    branch: Branch | None = None
    lease: Amount = Amount()
    """What the parent lets it and its children spend in all."""
    asking: bool = False
    """The parent was asked for more and has not answered."""
    needed: Amount | None = None
    wished: Amount | None = None
    """What it was asked for: said again with each report, until there is an answer."""
    scarce: bool = False
    """The parent gave less than was wished: ask again only for what is needed."""
    refused: bool = False
    """The parent has no more."""
    children: tuple[Child, ...] = ()
    asks: int = 0
    told: tuple[str, ...] = ()
    """Who waits for a person, as the parent knows it."""

    @property
    def path(self) -> list[str]:
        """From the root to this run."""
        return self.branch.path if self.branch else []

    def child(self, key: str) -> Child | None:
        """The living child of that key."""
        return next((child for child in self.children if child.key == key), None)


def rooted(branch: Branch | None) -> Tree:
    """The tree of a run that begins."""
    return Tree(branch=branch, lease=branch.lease if branch else Amount())


def grace_of(tree: Tree) -> timedelta:
    """How long this run waits for last words: a child less than its parent, which waits for it."""
    if tree.branch is None:
        return GRACE
    return max(tree.branch.grace - _GRACE_LESS, _GRACE_LEAST)


def held(tree: Tree) -> Amount:
    """What the living children hold."""
    return plus(NOTHING, *(child.lease for child in tree.children))


def left(tree: Tree, limits: Amount, spent: Amount) -> Amount:
    """What the run may still spend, or hand out."""
    return minus(least(limits, tree.lease), spent, held(tree))


def lacking(tree: Tree, limits: Amount, spent: Amount, want: Amount) -> tuple[Amount | None, bool]:
    """How much of the want is missing, and whether the parent could give it."""
    short = missing(want, left(tree, limits, spent))
    if short is None:
        return None, False
    own = missing(want, minus(limits, spent, held(tree)))
    return short, own is None and not tree.refused


def lease_for(tree: Tree, limits: Amount, spent: Amount, starting: int, *, alone: bool) -> Amount:
    """What each of so many children that start now gets: all, when nobody else will need any."""
    there = left(tree, limits, spent)
    if starting == 1 and alone and not tree.children:
        return there
    return share(there, 2 * (starting + len(tree.children)))


def born(tree: Tree, child: Child) -> Tree:
    """With a child more."""
    return replace(tree, children=(*tree.children, child))


def gone(tree: Tree, key: str) -> Tree:
    """Without the child; what it held is free."""
    return replace(tree, children=tuple(child for child in tree.children if child.key != key))


def outcome_of(child: Child, outcome: RunResult) -> RunResult:
    """What a child's end is booked as: its last words where Temporal keeps none, its lease where it
    could say nothing at all.
    """
    if outcome.stop_reason == "cancelled" and child.final is not None:
        return child.final
    lost = outcome.error is not None and outcome.error.kind in ("Terminated", "TimedOut")
    if not lost and not (outcome.stop_reason == "cancelled" and outcome.usage.estimated):
        return outcome
    lease = child.lease
    return outcome.model_copy(
        update={
            "cost_microusd": lease.cost_microusd or 0,
            "usage": _most_used(lease),
            "tool_calls": lease.tool_calls or 0,
        }
    )


def _most_used(lease: Amount) -> Usage:
    """All tokens that a lease allows. What it bounds by their sum alone is booked where it bounds nothing."""
    read, written, total = lease.input_tokens, lease.output_tokens, lease.total_tokens or 0
    if read is None:
        read = max(total - (written or 0), 0)
    elif written is None:
        written = max(total - read, 0)
    return Usage(input_tokens=read, output_tokens=written or 0, estimated=True)


def reported(tree: Tree, report: Report) -> Tree:
    """After a child's report. One of a child that is gone changes nothing."""
    child = tree.child(report.key)
    if child is None:
        return tree
    lease = child.lease if report.returned is None else minus(child.lease, report.returned)
    changed = replace(
        child,
        waiting=tuple(report.waiting),
        idle=report.idle,
        lease=lease,
        need=report.request.minimum if report.request else None,
        wish=report.request.preferred if report.request else None,
        asked=tree.asks + 1,
        final=report.final or child.final,
    )
    return replace(_with(tree, changed), asks=tree.asks + 1)


def _with(tree: Tree, changed: Child) -> Tree:
    children = tuple(changed if child.key == changed.key else child for child in tree.children)
    return replace(tree, children=children)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What children that asked are told now, and what must be asked of the parent first."""

    grants: tuple[tuple[str, Grant], ...] = ()
    need: Amount | None = None
    wish: Amount | None = None


def answers(tree: Tree, limits: Amount, spent: Amount, *, busy: bool) -> Answers:
    """Answer the children's needs, oldest first. `busy`: the run itself may still give something back."""
    asking = sorted((child for child in tree.children if child.need is not None), key=lambda c: c.asked)
    grants: list[tuple[str, Grant]] = []
    for child in asking:
        assert child.need is not None
        there = left(tree, limits, spent)
        if missing(child.need, there) is not None:
            return _unmet(tree, limits, spent, child, tuple(grants), busy=busy)
        amount = _given(tree, child, there)
        tree = granted(tree, child.key, amount)
        grants.append((child.key, Grant(amount=amount)))
    return Answers(grants=tuple(grants))


def _given(tree: Tree, child: Child, there: Amount) -> Amount:
    assert child.need is not None
    most = there if len(tree.children) == 1 else share(there, 2 * len(tree.children))
    return between(child.need, child.wish or child.need, most)


def _unmet(
    tree: Tree,
    limits: Amount,
    spent: Amount,
    child: Child,
    grants: tuple[tuple[str, Grant], ...],
    *,
    busy: bool,
) -> Answers:
    assert child.need is not None
    short, parent_could = lacking(tree, limits, spent, child.need)
    if parent_could:
        wish = missing(child.wish or child.need, left(tree, limits, spent)) or short
        return Answers(grants=grants, need=short, wish=wish) if not tree.asking else Answers(grants=grants)
    others = any(one.need is None and not one.idle and is_something(one.lease) for one in tree.children)
    if grants or others or busy:
        return Answers(grants=grants)
    newest = max((one for one in tree.children if one.need is not None), key=lambda one: one.asked)
    return Answers(grants=((newest.key, Grant()),))


def granted(tree: Tree, key: str, amount: Amount | None) -> Tree:
    """After a child was answered."""
    child = tree.child(key)
    if child is None:
        return tree
    lease = child.lease if amount is None else plus(child.lease, amount)
    return _with(tree, replace(child, lease=lease, need=None, wish=None))


def asked(tree: Tree, need: Amount, wish: Amount) -> Tree:
    """After the parent was asked for more."""
    return replace(tree, asking=True, needed=need, wished=wish)


def answered(tree: Tree, grant: Grant) -> Tree:
    """After the parent answered."""
    if grant.amount is None:
        return replace(tree, asking=False, refused=True)
    scarce = tree.scarce or (tree.wished is not None and missing(tree.wished, grant.amount) is not None)
    return replace(tree, asking=False, scarce=scarce, lease=plus(tree.lease, grant.amount))


def waiting_below(tree: Tree) -> list[Waiting]:
    """Who waits for a person below this run, with the path from it."""
    return [
        one.model_copy(update={"path": [child.key, *one.path]})
        for child in tree.children
        for one in child.waiting
    ]


def idle_lease(tree: Tree, limits: Amount, spent: Amount) -> Amount | None:
    """What a run that only waits for people can give back, if anything."""
    working = any(not child.idle for child in tree.children)
    if tree.branch is None or tree.asking or working or not is_bounded(tree.lease):
        return None
    spare = minus(tree.lease, spent, held(tree))
    return spare if is_something(spare) else None


def told(tree: Tree, waiting: tuple[str, ...], returned: Amount | None) -> Tree:
    """After the parent was told who waits, and given so much back. It may ask for it again."""
    tree = replace(tree, told=waiting)
    if returned is None:
        return tree
    return replace(tree, lease=minus(tree.lease, returned), scarce=False, refused=False)
