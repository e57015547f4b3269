"""Cut: nodes of a team that its limit ends before they are done, and how they go on after an extension.

Rules
1. A node is cut short by a limit that the whole team shares, by the end of the team's time, or if its end by a limit
   is the end of the team.
2. From the first such end on, the scheduler's memory is kept as it would be if these nodes still ran. Nodes that end
   well meanwhile are recorded there too. Nodes that start later are not: they saw what was cut short.
3. An extended team takes that memory, and starts the nodes that were cut short under their old keys. A run below goes
   on from its closed execution; a function is called anew, with its key.
4. What a run below had used before is booked already. Of its result only the rest is booked, and its lease is that
   much larger than what the team holds for it.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from perdure.messages import Usage
from perdure.scheduling import Start
from perdure.wire.requests import ExtendRequest, RunOrigin
from perdure.wire.results import NodeResult, RunResult
from perdure.wire.tree import Amount, Spent

from .amounts import plus, spent_of, sum_by_tool, usage_since
from .extension import FIELDS_BY_REASON
from .past import Cut, Extension
from .state import RunState
from .team_state import TeamState
from .tree import Child


@runtime_checkable
class Restarts(Protocol):
    """Scheduler that sets the start of a node anew, because the limits have changed since."""

    def restart(self, progress: Any, start: Start) -> Start:
        """Return the start of a node that runs by the scheduler's memory, and is started once more."""
        ...


def is_cut_short(result: NodeResult) -> bool:
    """Return whether the node ended before it was done, though it did not fail."""
    return result.stop_reason in FIELDS_BY_REASON or result.stop_reason in ("stopped", "cancelled")


def cut_to_restart(team: TeamState, extension: Extension) -> Cut:
    """Return the nodes that an extended team starts again, and the executions from which they go on.

    Raises:
        ValueError: a node that its time has ended gets no more of it.

    """
    runs = {node.run_id: node.key for node in team.results if node.run_id is not None}
    origins = {
        runs[run_id]: execution for run_id, execution in extension.executions.items() if run_id in runs
    }
    if extension.child is None and extension.ended_by == "node_timeout":
        _check_time(team, extension)
    nodes = tuple(_with_time(start, extension) for start in team.cut.nodes)
    again = tuple(_attempt(start, origins) for start in nodes)
    return Cut(again=again, origins=origins, results=len(team.results))


def _check_time(team: TeamState, extension: Extension) -> None:
    """Check that nodes which their time has ended get more, whoever bounds it: the team, the node or its scheduler.

    Raises:
        ValueError: they do not; in words.

    """
    late = {node.key for node in team.results if node.stop_reason == "node_timeout"}
    spans = [start.timeout for start in team.cut.nodes if start.key in late and start.timeout is not None]
    longest = max(spans, default=None)
    if longest is not None and not _is_longer(extension, longest):
        raise ValueError(f"the run cannot go on: raise node_timeout to more than {longest}")


def _is_longer(extension: Extension, span: timedelta) -> bool:
    if "node_timeout" not in extension.limits.model_fields_set:
        return False
    granted: timedelta | None = getattr(extension.limits, "node_timeout", None)
    return granted is None or granted > span


def _with_time(start: Start, extension: Extension) -> Start:
    """Return the start with the granted time, if that is longer than its own."""
    if start.timeout is None or not _is_longer(extension, start.timeout):
        return start
    return replace(start, timeout=getattr(extension.limits, "node_timeout", None))


def _attempt(start: Start, origins: dict[str, str]) -> Start:
    """Return the start of a node that begins anew as one more attempt, of one that goes on as the same."""
    return start if start.key in origins else replace(start, attempt=start.attempt + 1)


def extension_for(state: RunState, key: str, run_id: str) -> ExtendRequest | None:
    """Return the extension of a run below that goes on; None for a run that begins."""
    execution = state.cut.origins.get(key) if isinstance(state, TeamState) else None
    if execution is None:
        return None
    record = state.past.extensions[-1]
    return ExtendRequest(
        origin=RunOrigin(workflow_id=run_id, execution_id=execution),
        limits=record.limits,
        by=record.by,
        reason=record.reason,
    )


def _results_before(team: TeamState, key: str) -> list[NodeResult]:
    """Return what was booked before of the node of that key, if it goes on."""
    return [result for result in team.results if result.key == key] if key in team.cut.origins else []


def lease_below(state: RunState, child: Child | None) -> Amount:
    """Return the lease of a child. One that goes on counts all that it ever used, so that comes on top."""
    if child is None:
        return Amount()
    booked = _results_before(state, child.key) if isinstance(state, TeamState) else []
    usage = sum((result.usage for result in booked), Usage())
    per_tool = sum_by_tool(*(result.per_tool for result in booked))
    cost = sum(result.cost_microusd or 0 for result in booked)
    used = spent_of(usage, cost, sum(result.tool_calls for result in booked), per_tool)
    return plus(child.lease, used)


def outcome_since(team: TeamState, key: str, outcome: RunResult) -> RunResult:
    """Return the outcome without what was booked before of the same node."""
    booked = _results_before(team, key)
    if not booked:
        return outcome
    spent = _rest(
        Spent(
            usage=outcome.usage,
            cost_microusd=outcome.cost_microusd,
            tool_calls=outcome.tool_calls,
            per_tool=outcome.per_tool,
            steps=outcome.steps,
        ),
        booked,
    )
    return outcome.model_copy(update={name: getattr(spent, name) for name in Spent.model_fields})


def child_since(team: TeamState, child: Child) -> Child:
    """Return the child with its reports counted from where it went on."""
    booked = _results_before(team, child.key)
    if not booked:
        return child
    return replace(
        child,
        spent=None if child.spent is None else _rest(child.spent, booked),
        final=None if child.final is None else outcome_since(team, child.key, child.final),
    )


def _rest(spent: Spent, booked: list[NodeResult]) -> Spent:
    used = sum((result.usage for result in booked), Usage())
    cost = sum(result.cost_microusd or 0 for result in booked)
    tools = sum_by_tool(*(result.per_tool for result in booked))
    return Spent(
        usage=usage_since(spent.usage, used, estimated=spent.usage.estimated),
        cost_microusd=None if spent.cost_microusd is None else max(spent.cost_microusd - cost, 0),
        tool_calls=max(spent.tool_calls - sum(result.tool_calls for result in booked), 0),
        per_tool={name: max(calls - tools.get(name, 0), 0) for name, calls in spent.per_tool.items()},
        steps=max(spent.steps - sum(result.steps for result in booked), 0),
    )
