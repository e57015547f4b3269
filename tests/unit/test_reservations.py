"""Reservations cover all attempts, limits of single tools hold in the whole tree, and nothing unheard is free."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import Agent, Graph, GraphLimits, Node, tool
from perdure.errors import DefinitionError
from perdure.messages import Usage
from perdure.prices import Price
from perdure.wire.reservation import Reservation
from perdure.wire.results import Failure, RunResult
from perdure.wire.tree import Amount, Spent
from perdure.workflows.engine import tree
from perdure.workflows.engine.amounts import (
    fields_of,
    is_something,
    least,
    minus,
    missing,
    of,
    plus,
    share,
    total,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COUNTS = st.integers(0, 50)
AMOUNTS = st.builds(
    Amount,
    cost_microusd=st.none() | COUNTS,
    output_tokens=st.none() | COUNTS,
    tool_calls=st.none() | COUNTS,
    per_tool=st.dictionaries(st.sampled_from("abc"), COUNTS, max_size=3),
)
PRICES = st.builds(
    Price,
    input=st.integers(0, 9_000_000),
    output=st.integers(0, 90_000_000),
    cache_read=st.just(0),
    cache_write=st.integers(0, 9_000_000),
)


@given(AMOUNTS, AMOUNTS, AMOUNTS)
def test_amounts_of_tools_add_up(amount: Amount, first: Amount, second: Amount) -> None:
    """What is taken and what is left make the whole, tool by tool; a tool without a bound stays without."""
    left = minus(amount, first, second)
    taken = total([first, second])
    for field in fields_of(amount, first, second):
        bound = of(amount, field)
        if bound is None:
            assert of(left, field) is None
            assert of(plus(amount, first), field) is None
        else:
            assert of(left, field) == max(bound - (of(taken, field) or 0), 0)
    assert missing(amount, least(amount, first)) is None or is_something(amount)
    parts = total([share(amount, 3)] * 3)
    assert all((of(parts, field) or 0) <= (of(amount, field) or 0) for field in fields_of(amount))


@given(
    reads=st.integers(1, 5000),
    price=st.none() | PRICES,
    cost=st.none() | st.integers(1, 300_000),
    tokens=st.none() | st.integers(1, 60_000),
    output=st.none() | st.integers(1, 30_000),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_all_attempts_stay_within_the_reservation(
    *,
    reads: int,
    price: Price | None,
    cost: int | None,
    tokens: int | None,
    output: int | None,
    shares: list[float],
) -> None:
    """However much each attempt writes before it is cut, the sum stays within what was reserved."""
    amount = Amount(cost_microusd=cost, total_tokens=tokens, output_tokens=output)
    reservation = Reservation(amount=amount, reads=reads)
    spent, microusd = Usage(), 0
    for part in shares:
        longest = reservation.longest_reply(spent, microusd, price)
        bound = 8192 if longest is None else min(longest[0], 8192)
        if bound < 16:
            break
        attempt = Usage(input_tokens=reads, output_tokens=round(part * bound))
        spent = spent + attempt
        microusd += price.cost_microusd(attempt) if price else 0
    assert cost is None or price is None or microusd <= cost
    assert tokens is None or spent.total_tokens <= tokens
    assert output is None or spent.output_tokens <= output


def _child(**fields: object) -> tree.Child:
    return replace(tree.Child(key="k", name="n", run_id="r/k"), **fields)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


TERMINATED = RunResult(
    agent="n",
    stop_reason="error",
    error=Failure(kind="Terminated", message="the run was terminated"),
    usage=Usage(estimated=True),
    cost_microusd=None,
)
SPENT = Spent(
    usage=Usage(input_tokens=70, output_tokens=7), cost_microusd=300, tool_calls=2, per_tool={"pay": 1}
)


@pytest.mark.parametrize(
    ("child", "cost", "read"),
    [
        (_child(), None, 0),  # nothing is known of it
        (_child(spent=SPENT), None, 70),  # it may have spent more since
        (_child(spent=SPENT, idle=True), 300, 70),  # it only waited for a person
        (_child(spent=SPENT, lease=Amount(cost_microusd=900)), 900, 70),
        (_child(lease=Amount(cost_microusd=900, input_tokens=500)), 900, 500),
        (_child(spent=SPENT, idle=True, lease=Amount(input_tokens=80)), 300, 80),
    ],
)
@pytest.mark.parametrize("given_up", [False, True])
def test_a_lost_child_is_never_free(
    child: tree.Child, cost: int | None, read: int, *, given_up: bool
) -> None:
    """The cost of a child that was terminated or given up is its lease, its last report, or unknown; never 0."""
    outcome = TERMINATED
    if given_up:
        outcome = RunResult(agent="n", stop_reason="cancelled", usage=Usage(estimated=True))
    booked = tree.outcome_of(child, outcome)
    assert booked.cost_microusd == cost
    assert booked.usage.all_input_tokens == read
    assert booked.usage.estimated
    if child.spent:
        assert booked.tool_calls == 2
        assert booked.per_tool == {"pay": 1}


@tool
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


PAYER = Agent(name="payer", model="scripted:x", tools=[pay])


def test_misspelt_tool_limit_of_a_team_is_refused() -> None:
    def graph(name: str) -> Graph:
        limits = GraphLimits(per_tool={name: 1})
        return Graph(name="g", nodes={"a": Node(PAYER)}, edges=[], entry="a", limits=limits)

    with pytest.raises(DefinitionError, match="names 'pya', which is not a tool of its agents"):
        graph("pya")
    assert graph("pay").limits.per_tool == {"pay": 1}
