"""Family of a run: deadlines, budgets and reports between parent and children, the same for all programs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar, assert_never

from perdure.messages import Usage
from perdure.wire.results import RunResult, StopReason
from perdure.wire.tree import Amount

from . import tree
from .account import limits_of, spent
from .amounts import plus, sum_by_tool
from .approvals import remember_relayed
from .clocks import fold_people, waited_lines
from .commands import Command, GrantChildren, RequestBudget
from .events import (
    AnswerRelayed,
    ApprovalRelayed,
    BudgetGranted,
    BudgetRequested,
    ChildGranted,
    ChildReported,
    ParentInformed,
    PeopleAnswered,
    PeopleAwaited,
    TreeEvent,
)
from .questions import remember_answer
from .state import RunState
from .tree import Child

NOT_HEARD: Final = "it gave no result: what it has not read or not done is not known"
"""Line in `missing` for a run of which nobody hears any more."""
AnyState = TypeVar("AnyState", bound=RunState)


def function_under_way(node: str) -> str:
    """Return the line in `missing` for a function of a graph that was ended before it returned."""
    return f"function {node!r} was under way; it may or may not have taken effect"


def fold_tree_event(state: AnyState, event: TreeEvent) -> AnyState:
    """Return the state after something passed between the run and its parent or a child."""
    match event:
        case ApprovalRelayed():
            return replace(state, relayed=remember_relayed(state, event.decision))
        case PeopleAwaited() | PeopleAnswered():
            return fold_people(state, event)
        case AnswerRelayed():
            answer = event.answer
            # The child's own report comes later: the next message must not go to this question.
            changed = tree.drop_waiting(state.tree, answer.run_id, answer.call_id)
            return replace(state, answers=remember_answer(state, answer), tree=changed)
        case ChildReported():
            changed = tree.apply_report(state.tree, event.report)
        case ChildGranted():
            changed = tree.apply_child_grant(state.tree, event.key, event.grant.amount)
        case BudgetRequested():
            changed = tree.mark_requested(state.tree, event.request)
        case BudgetGranted():
            changed = tree.apply_grant(state.tree, event.grant)
        case ParentInformed():
            changed = tree.mark_reported(state.tree, event.waiting, event.returned)
        case _:
            assert_never(event)
    return replace(state, tree=changed)


def command_for_children(state: RunState, *, busy: bool, pending: Amount | None = None) -> Command | None:
    """Return the command that the children's budget requests ask for, or None.

    `busy`: the run itself may still give something back. `pending`: what its own pending work may still spend.
    """
    if all(child.request is None for child in state.tree.children):
        return None
    # A pending model call may still spend its reservation, so children cannot have that part.
    used = spent(state) if pending is None else plus(spent(state), pending)
    answers = tree.answer_requests(state.tree, limits_of(state), used, busy=busy)
    if answers.grants:
        return GrantChildren(grants=answers.grants)
    # Grants first: what can be met at once must not wait for the lender.
    return None if answers.request is None else RequestBudget(request=answers.request)


def book(
    state: AnyState,
    usage: Usage,
    cost_microusd: int | None,
    *,
    tool_calls: int = 0,
    steps: int = 0,
    per_tool: Mapping[str, int] | None = None,
) -> AnyState:
    """Add to the ledger. A cost of None makes the sum unknown."""
    ledger = state.ledger
    return replace(
        state,
        # An unknown cost adds nothing, and marks the sum: people see "unknown", never a sum that is too low.
        ledger=replace(
            ledger,
            usage=ledger.usage + usage,
            cost_microusd=ledger.cost_microusd + (cost_microusd or 0),
            cost_unknown=ledger.cost_unknown or cost_microusd is None,
            estimates=ledger.estimates + usage.estimated,
            tool_calls=ledger.tool_calls + tool_calls,
            per_tool=sum_by_tool(ledger.per_tool, per_tool) if per_tool else ledger.per_tool,
            steps=ledger.steps + steps,
        ),
    )


def book_outcome(state: AnyState, outcome: RunResult) -> AnyState:
    """Add what an ended child has used to the ledger of an agent, whose steps are its own."""
    return book(
        state,
        outcome.usage,
        outcome.cost_microusd,
        tool_calls=outcome.tool_calls,
        per_tool=outcome.per_tool,
    )


def unheard_outcome(child: Child) -> RunResult:
    """Return the outcome to book for a child that is given up: its usage is marked as estimated."""
    unheard = RunResult(
        agent=child.name,
        stop_reason="cancelled",
        usage=Usage(estimated=True),
        missing=[NOT_HEARD, *waited_lines(child)],
    )
    return tree.outcome_of(child, unheard)


def ending_reason(state: RunState, requested: StopReason) -> StopReason:
    """Return the reason with which the run ends: a cancellation is stronger than a stop, the first reason stays."""
    return "cancelled" if requested == "cancelled" else state.ending or requested
