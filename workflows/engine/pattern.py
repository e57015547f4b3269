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
class PatternProgress(Generic[P]):
    """Progress of the user's scheduler, and what the rules above must remember."""

    own: P
    keys: tuple[str, ...] = ()
    """Keys of all nodes that have started."""
    running: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatternScheduler:
    """Scheduler of one pattern, around the user's own. It is made by `bounded_scheduler`."""

    spec: PatternSpec
    own: Scheduler[Any]
    progress_type: ClassVar[Any]
    runs_alone: ClassVar[bool]

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> PatternProgress[Any]:
        """Return the progress of a team that has just been given its task."""
        known = {name: descriptions.get(name, "") for name in self.spec.members}
        return PatternProgress(own=self.own.begin(task, known))

    def startable(self, progress: PatternProgress[Any]) -> tuple[Start, ...]:
        """Return the nodes to start now, as many as may still start."""
        starts = [self._complete_start(start) for start in self.own.startable(progress.own)]
        keys = [start.key for start in starts]
        again = next((key for at, key in enumerate(keys) if key in progress.keys or key in keys[:at]), None)
        if again is not None:
            raise self._contract_error(f"startable() returned the key {again!r} twice")
        again = next((start.retry_of for start in starts if start.retry_of not in ("", *progress.keys)), None)
        if again is not None:
            raise self._contract_error(f"startable() retries {again!r}, which has not started")
        return tuple(starts[: self._may_start(progress)])

    def _complete_start(self, start: Start) -> Start:
        member = start.member or start.node
        kind = self.spec.members.get(member)
        if kind is None:
            raise self._contract_error(f"node {start.key!r} runs {member!r}, which is none of its members")
        timeout = start.timeout or self.spec.limits.node_timeout
        return replace(start, member=member, kind=kind, timeout=timeout)

    def _may_start(self, progress: PatternProgress[Any]) -> int | None:
        most = self.spec.limits.max_node_executions
        return None if most is None else max(most - len(progress.keys), 0)

    def record_start(self, progress: PatternProgress[Any], starts: Sequence[Start]) -> PatternProgress[Any]:
        """Return the progress once these nodes are running."""
        keys = tuple(start.key for start in starts)
        own = self.own.record_start(progress.own, starts)
        return PatternProgress(own=own, keys=(*progress.keys, *keys), running=(*progress.running, *keys))

    def record_end(self, progress: PatternProgress[Any], result: NodeResult) -> PatternProgress[Any]:
        """Return the progress after a node ended. A result of no running node changes nothing."""
        # Checked here, so that no scheduler of a user's can be called with a result twice.
        if result.key not in progress.running:
            return progress
        running = tuple(key for key in progress.running if key != result.key)
        return replace(progress, own=self.own.record_end(progress.own, result), running=running)

    def over(self, progress: PatternProgress[Any]) -> Over | None:
        """Return the end, or None while a node runs or can start."""
        over = self.own.over(progress.own)
        if over is not None or progress.running:
            return over
        if self._may_start(progress) == 0:
            return Over(stop_reason="max_node_executions", output=self.partial(progress))
        # Without this check the run would wait for ever, and nobody would see why.
        if not self.own.startable(progress.own):
            raise self._contract_error("nothing runs, startable() returned nothing, and over() returned None")
        return None

    def partial(self, progress: PatternProgress[Any]) -> Any:
        """Return the best output so far."""
        return self.own.partial(progress.own)

    def notes(self, progress: PatternProgress[Any]) -> Notes:
        """Return remarks for status and result."""
        return self.own.notes(progress.own)

    def _contract_error(self, problem: str) -> BrokenContract:
        return BrokenContract(f"scheduler of {self.spec.pattern} {self.spec.name!r}: {problem}")


def bounded_scheduler(spec: PatternSpec, own: Scheduler[Any]) -> PatternScheduler:
    """Return the user's scheduler within the rules above."""

    # A class of its own, because the type of a progress belongs to the class of its scheduler.
    class Bounded(PatternScheduler):
        progress_type: ClassVar[Any] = PatternProgress[own.progress_type]  # type: ignore[name-defined]
        runs_alone: ClassVar[bool] = own.runs_alone

    return Bounded(spec, own)
