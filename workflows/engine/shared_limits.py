"""Shared limits: whether a limit of the whole team, or one of the node's own, has ended a node.

Rules
1. Of all bounds that end a run with the node's reason, the cause is the one with the least left. Where the node's own
   have as little left, the cause is its own.
2. A team leaves to a node its lease, and what is free beside it when the node ends.
3. `steps` and `identical_calls` of a team bound each run of a node. There the smaller bound is the cause.
4. A bound of a single tool ends a run only by calls that it has refused, where the node says which they are.
5. The team's deadline is the cause of each end by time at or after it.
"""

from dataclasses import replace

from perdure.limits import Limits
from perdure.wire.results import NodeResult, RunResult, StopReason
from perdure.wire.tree import Amount

from .account import room
from .amounts import bounds_of, fields_of, of, plus, reason_of, spent_of
from .extension import raised_by
from .team_state import TeamState


def note_shared_limit(
    team: TeamState, key: str, node: str, outcome: RunResult, since: RunResult
) -> TeamState:
    """Return the team, before it books the end of a node, with the limit of its own that has made this end, if any.

    `since`: the outcome of a node that goes on after an extension, without what it had used before.
    """
    if not _is_shared(team, key, _own_limits(team, key, node), outcome, since):
        return team
    assert outcome.stop_reason is not None, "it is shared for its reason"
    return replace(team, cut=replace(team.cut, shared={**team.cut.shared, key: outcome.stop_reason}))


def shared_limit(team: TeamState) -> StopReason | None:
    """Return the limit of the whole team that has cut a node short, if any has."""
    # What was cut short before an extension went on after it.
    if any(is_at_deadline(team, result) for result in team.results[team.cut.results :]):
        return "deadline"
    return next(iter(team.cut.shared.values()), None)


def is_at_deadline(team: TeamState, result: NodeResult) -> bool:
    """Return whether the team's own deadline has ended the node. The node may notice it first."""
    due, ended_at = team.deadline_at, result.ended_at
    return result.stop_reason == "deadline" and due is not None and ended_at is not None and ended_at >= due


def _own_limits(team: TeamState, key: str, node: str) -> Limits:
    """Return the limits of the node's own, as extensions have raised them."""
    name = team.member_of.get(node, node)
    limits: Limits = next(
        (member.limits for member in team.members if member.name == name), Limits(steps=None)
    )
    for record in team.past.extensions if key in team.cut.origins else ():
        common = {name: value for name, value in record.limits.items() if name in Limits.model_fields}
        limits = raised_by(limits, Limits.model_validate(common))
    return limits


def _is_shared(team: TeamState, key: str, own: Limits, outcome: RunResult, since: RunResult) -> bool:
    if outcome.stop_reason == "max_steps":
        return _is_smaller(team.limits.steps, own.steps)
    child = team.tree.child(key)
    left_by_team = _least_left(plus(room(team), child.lease) if child else room(team), since, outcome)
    left_by_own = _least_left(bounds_of(own), outcome, outcome)
    if outcome.stop_reason == "max_tool_calls" and 0 not in (left_by_team, left_by_own):
        # No count of calls is used up, so identical calls were refused until the run ended.
        return _is_smaller(team.limits.identical_calls, own.identical_calls)
    return _is_smaller(left_by_team, left_by_own)


def _is_smaller(bound: int | None, own: int | None) -> bool:
    return bound is not None and (own is None or bound < own)


def _least_left(bounds: Amount, used: RunResult, outcome: RunResult) -> int | None:
    """Return the least that is left of the bounds that end a run with the outcome's reason; None without any."""
    spent = spent_of(used.usage, used.cost_microusd or 0, used.tool_calls, used.per_tool)
    if outcome.refused_calls:
        tools = {name: bound for name, bound in bounds.per_tool.items() if name in outcome.refused_calls}
        bounds = bounds.model_copy(update={"per_tool": tools})
    left = [
        max(bound - (of(spent, name) or 0), 0)
        for name in fields_of(bounds)
        if reason_of(name) == outcome.stop_reason and (bound := of(bounds, name)) is not None
    ]
    return min(left, default=None)
