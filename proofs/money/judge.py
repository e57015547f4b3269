"""Judge: the provider's bill of each tree against its limits, and against what its result says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from perdure import Limits
from perdure.prices import Price
from perdure.wire.results import RunResult

MOST_MISSED: Final = 0.05
"""Share of the bill that a result may lack if it says that it is estimated."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Tree that was played."""

    number: str
    member: str
    limits: Limits
    fault: str
    """What was done to it, beside faults by chance: "", "stopped" or "terminated"."""
    result: RunResult | None
    error: str = ""


@dataclass
class Bill:
    """What the provider bills for a tree."""

    calls: int = 0
    read: int = 0
    written: int = 0
    microusd: int = 0

    def add(self, line: Mapping[str, Any], price: Price) -> None:
        """Add a call, at the price of each sort of token."""
        self.calls += 1
        self.read += line["input"] + line["cache_read"] + line["cache_write"]
        self.written += line["output"]
        exact = (
            line["input"] * price.input
            + line["cache_read"] * price.cache_read
            + line["cache_write"] * price.cache_write
            + line["output"] * price.output
        )
        self.microusd += -(-exact // 1_000_000)


@dataclass
class Verdict:
    """Counts of a run of the proof, and every promise that was broken."""

    trees: int = 0
    calls: int = 0
    exact: int = 0
    estimated: int = 0
    unknown: int = 0
    billed_microusd: int = 0
    booked_microusd: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])
    broken: list[str] = field(default_factory=list[str])

    def judge(self, tree: Tree, bill: Bill, notes: int, price: Price) -> None:
        """Judge a tree."""
        self.trees += 1
        self.calls += bill.calls
        if tree.result is None:
            self.broken.append(f"tree {tree.number} ({tree.member}): no result: {tree.error}")
            return
        self.ends[str(tree.result.stop_reason)] += 1
        self.billed_microusd += bill.microusd
        self.booked_microusd += tree.result.cost_microusd or 0
        for problem in [*_over_limit(tree, bill, notes, price), *_under_booked(tree, tree.result, bill)]:
            what = f"{tree.member}, {tree.fault or 'played on'}, ended by {tree.result.stop_reason}"
            self.broken.append(f"tree {tree.number} ({what}): {problem}")
        if tree.result.cost_microusd is None:
            self.unknown += 1
            if not tree.fault:
                self.broken.append(
                    f"tree {tree.number}: its cost is unknown, though it was played to its end"
                )
        elif tree.result.usage.estimated:
            self.estimated += 1
        else:
            self.exact += 1

    @property
    def holds(self) -> bool:
        """True when no promise was broken."""
        return not self.broken


def _over_limit(tree: Tree, bill: Bill, notes: int, price: Price) -> list[str]:
    """Return the limits that the bill passes by more than the last token of a call."""
    limits = tree.limits
    token = -(-price.output // 1_000_000)
    checks: Sequence[tuple[str, int, int | None, int]] = (
        ("micro-dollars", bill.microusd, limits.cost_microusd, token),
        ("tokens read", bill.read, limits.input_tokens, 0),
        ("tokens written", bill.written, limits.output_tokens, 1),
        ("tokens", bill.read + bill.written, limits.total_tokens, 1),
        ("calls of note", notes, limits.per_tool.get("note"), 0),
    )
    return [
        f"billed {billed} {what}, limit {limit}"
        for what, billed, limit, slack in checks
        if limit is not None and billed > limit + slack
    ]


def _under_booked(tree: Tree, result: RunResult, bill: Bill) -> list[str]:
    """Return what was billed and not booked.

    A run below that was terminated, or did not answer a stop in time, is booked with its lease. A lease bounds what
    the tree's limits bound, so of such a tree nothing else is judged but the money.
    """
    usage = result.usage
    if result.cost_microusd is None and usage.estimated:
        return []  # it says that it does not know
    is_lost = bool(tree.fault) and usage.estimated
    judged = (
        ("micro-dollars", bill.microusd, result.cost_microusd or 0, True),
        ("tokens read", bill.read, usage.all_input_tokens, tree.limits.input_tokens is not None),
        ("tokens written", bill.written, usage.output_tokens, tree.limits.output_tokens is not None),
    )
    checks = [(what, billed, booked) for what, billed, booked, bounded in judged if bounded or not is_lost]
    least = 1 - MOST_MISSED if usage.estimated else 1.0
    problems = [f"billed {b} {what}, booked {a}" for what, b, a in checks if a < least * b]
    if not usage.estimated and usage.total_tokens != bill.read + bill.written:
        problems.append(f"billed {bill.read + bill.written} tokens, booked {usage.total_tokens} as exact")
    return problems
