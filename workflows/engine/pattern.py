"""Scheduler of a pattern: the user's own, with the rules that hold for every pattern.

Rules
1. Nodes run members. The engine knows the kind of each, and bounds each run by `limits.node_timeout`.
2. At most `limits.max_node_executions` nodes start; then the pattern ends with the best output so far.
3. A scheduler that breaks its contract is a bug in the worker's code. It fails the workflow task, not the run:
   a worker with corrected code goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from perdure.messages import Part
from perdure.scheduling import Notes, Over, Scheduler, Start
from perdure.wire.results import NodeResult
from perdure.wire.spec import PatternSpec

P = TypeVar("P")


class BrokenContract(RuntimeError):
    """A scheduler returned a value that its contract forbids."""


@dataclass(frozen=True, kw_only=True)
class PatternPlan(Generic[P]):
    """Plan of the user's scheduler, and what the rules above must remember."""

    own: P
    keys: tuple[str, ...] = ()
    """Keys of all nodes that have started."""
    running: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatternScheduler:
    """Scheduler of one pattern, around the user's own. It is made by `bounded_scheduler`."""

    spec: PatternSpec
    own: Scheduler[Any]
    plan_type: ClassVar[Any]
    runs_alone: ClassVar[bool]

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> PatternPlan[Any]:
        """Return the plan of a team that has just been given its task."""
        known = {name: descriptions.get(name, "") for name in self.spec.members}
        return PatternPlan(own=self.own.begin(task, known))

    def startable(self, plan: PatternPlan[Any]) -> tuple[Start, ...]:
        """Return the nodes to start now, as many as may still start."""
        starts = [self._complete_start(start) for start in self.own.startable(plan.own)]
        keys = [start.key for start in starts]
        again = next((key for at, key in enumerate(keys) if key in plan.keys or key in keys[:at]), None)
        if again is not None:
            raise self._contract_error(f"startable() returned the key {again!r} twice")
        return tuple(starts[: self._may_start(plan)])

    def _complete_start(self, start: Start) -> Start:
        member = start.member or start.node
        kind = self.spec.members.get(member)
        if kind is None:
            raise self._contract_error(f"node {start.key!r} runs {member!r}, which is none of its members")
        timeout = start.timeout or self.spec.limits.node_timeout
        return replace(start, member=member, kind=kind, timeout=timeout)

    def _may_start(self, plan: PatternPlan[Any]) -> int | None:
        most = self.spec.limits.max_node_executions
        return None if most is None else max(most - len(plan.keys), 0)

    def record_start(self, plan: PatternPlan[Any], starts: Sequence[Start]) -> PatternPlan[Any]:
        """Return the plan once these nodes are running."""
        keys = tuple(start.key for start in starts)
        own = self.own.record_start(plan.own, starts)
        return PatternPlan(own=own, keys=(*plan.keys, *keys), running=(*plan.running, *keys))

    def record_end(self, plan: PatternPlan[Any], result: NodeResult) -> PatternPlan[Any]:
        """Return the plan after a node ended. A result of no running node changes nothing."""
        # Checked here, so that no scheduler of a user's can be called with a result twice.
        if result.key not in plan.running:
            return plan
        running = tuple(key for key in plan.running if key != result.key)
        return replace(plan, own=self.own.record_end(plan.own, result), running=running)

    def over(self, plan: PatternPlan[Any]) -> Over | None:
        """Return the end, or None while a node runs or can start."""
        over = self.own.over(plan.own)
        if over is not None or plan.running:
            return over
        if self._may_start(plan) == 0:
            return Over(stop_reason="max_node_executions", output=self.partial(plan))
        # Without this check the run would wait for ever, and nobody would see why.
        if not self.own.startable(plan.own):
            raise self._contract_error("nothing runs, startable() returned nothing, and over() returned None")
        return None

    def partial(self, plan: PatternPlan[Any]) -> Any:
        """Return the best output so far."""
        return self.own.partial(plan.own)

    def notes(self, plan: PatternPlan[Any]) -> Notes:
        """Return remarks for status and result."""
        return self.own.notes(plan.own)

    def _contract_error(self, problem: str) -> BrokenContract:
        return BrokenContract(f"scheduler of {self.spec.pattern} {self.spec.name!r}: {problem}")


def bounded_scheduler(spec: PatternSpec, own: Scheduler[Any]) -> PatternScheduler:
    """Return the user's scheduler within the rules above."""

    # A class of its own, because the type of a plan belongs to the class of its scheduler.
    class Bounded(PatternScheduler):
        plan_type: ClassVar[Any] = PatternPlan[own.plan_type]  # type: ignore[name-defined]
        runs_alone: ClassVar[bool] = own.runs_alone

    return Bounded(spec, own)
