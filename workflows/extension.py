"""Extension of a run that a limit has ended: the beginning of the new execution, and the answers of the closed one.

The rules stand in `engine.extension`. The input names the closed execution and what is granted; the state is rebuilt
by an activity (`activities/rebuild.py`), in the parts in which continue-as-new would have carried it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from perdure.wire.effects import CarriedPart, Rebuild
from perdure.wire.names import CARRIED, EXTENDABLE, FIND_EXECUTIONS, REBUILD
from perdure.wire.requests import ExtendRequest
from perdure.wire.results import ExtensionRecord, Failure
from perdure.wire.spec import AnySpec
from perdure.wire.tree import ChildInput

from .engine.carry import spec_in, unpack
from .engine.extension import extend, extension_of
from .engine.program import RunningProgram
from .engine.state import RunState
from .engine.team_state import TeamState
from .handlers import RunHandlers
from .identity import identity_of, resets
from .inputs import check_extension_prices, extend_request_of, refuse
from .payloads import read_payload
from .waits import growing_pauses

_T = TypeVar("_T")
_PART_WITHIN: Final = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """State of a closed execution, and what the server says of it."""

    first: CarriedPart
    chunks: list[Any]

    @property
    def closed_at(self) -> datetime:
        """End of the closed execution."""
        assert self.first.closed_at is not None, "the server knows when an execution was closed"
        return self.first.closed_at


async def rebuild(request: Rebuild, held_up: Callable[[Failure], None]) -> Rebuilt:
    """Return the state of the closed execution; wait while no worker can rebuild it.

    Raises:
        ApplicationError: "InvalidRequest": the run cannot go on from that execution.

    """
    first = await _part(request, held_up)
    rest = [await _part(request.model_copy(update={"part": n}), held_up) for n in range(1, first.parts)]
    return Rebuilt(first=first, chunks=[part.argument for part in rest])


async def _part(request: Rebuild, held_up: Callable[[Failure], None]) -> CarriedPart:
    pauses = growing_pauses()
    while True:
        try:
            raw = await workflow.execute_activity(
                REBUILD,
                request,
                result_type=RawValue,
                start_to_close_timeout=_PART_WITHIN,
                retry_policy=RetryPolicy(maximum_attempts=5),
                summary=f"part {request.part} of {request.execution_id}",
            )
            return read_payload(raw, CarriedPart)
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError) and cause.non_retryable:
                raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from None
            is_late = isinstance(cause, TimeoutError)
            words = "no worker has rebuilt the state in time" if is_late else str(cause)
            held_up(Failure(kind="timeout" if is_late else "bug", message=words))
        except ValueError as error:  # a worker of a later version may have written it
            held_up(Failure(kind="bug", message=str(error)))
        await workflow.sleep(next(pauses), summary="try again to go on")


class ExtendableRun(RunHandlers):
    """Base of the workflows whose runs can be extended."""

    def _bind(self, spec: AnySpec) -> RunningProgram[Any]:
        """Return the program of a spec."""
        raise NotImplementedError

    async def _go_on(self, raw: Any, child: ChildInput | None = None) -> bool:
        """Set program and state of a run that goes on from a closed execution.

        Returns False for a run below that had ended before it began: then it begins now.

        Raises:
            ApplicationError: "InvalidRequest": it cannot; the closed execution and its result stay.
            EndedBeforeBeginningError: a stop, a cancel or the deadline came first.

        """
        self._is_extension = True
        request = raw if isinstance(raw, ExtendRequest) else extend_request_of(raw)
        self._asked = [
            ExtensionRecord(
                at=workflow.info().start_time,
                by=request.by,
                reason=request.reason,
                limits=request.limits,
                execution_id=request.origin.execution_id,
            )
        ]
        info, origin = workflow.info(), request.origin
        if origin.workflow_id != info.workflow_id:
            raise refuse(
                f"extension: the origin is {origin.workflow_id!r}, and a run goes on under its own id alone"
            )
        parent = info.parent.workflow_id if info.parent else None
        work = rebuild(Rebuild(execution_id=origin.execution_id, parent_id=parent), self._show_held_up)
        rebuilt = await self._race_to_begin(work, child)
        if not rebuilt.first.parts:
            if child is None:
                raise refuse("extension: the run had ended before it began; start a new one")
            return False
        program = self._bind(spec_in(rebuilt.first.argument))
        state, written = unpack(program, rebuilt.first.argument, rebuilt.chunks)
        state = self._extend_state(program, state, request, rebuilt=rebuilt, child=child)
        self._agent = state.spec.name
        # The bounds of a swarm or graph stand in its spec.
        self._loop.go_on(self._bind(state.spec), state, written)
        return True

    def _extend_state(
        self,
        program: RunningProgram[Any],
        state: RunState,
        request: ExtendRequest,
        *,
        rebuilt: Rebuilt | None = None,
        child: ChildInput | None = None,
    ) -> RunState:
        at = workflow.now()
        try:
            extension = extension_of(
                state,
                request,
                at=at,
                closed_at=rebuilt.closed_at if rebuilt else at,
                child=child,
                executions=rebuilt.first.executions if rebuilt else {},
            )
            if child is None:
                check_extension_prices(state, extension.limits)
            return extend(program, state, extension, self._bind)
        except ValueError as error:
            self._early_status = "failed"
            raise refuse(f"extension: {error}") from None

    # -- what a closed execution answers

    @workflow.query(
        name=EXTENDABLE, description="Whether a closed run can go on with these limits; else why not."
    )
    def extendable(self, request: Any = None, *_more: Any) -> dict[str, str]:
        """Return this execution's id, or nothing if it never began; refuse in words what it cannot go on with."""
        if self._loop.state is None and self._is_extension:
            return {"execution_id": ""}  # it never began: the run goes on from the execution before
        if self._early_result is not None:
            raise refuse("the run ended before it began; start a new one")
        self._extend_state(self._program, self._ready(), extend_request_of(request))
        return {"execution_id": workflow.info().run_id}

    @workflow.query(name=CARRIED, description="State of a closed run, a part at a time, for its extension.")
    def carried_part(self, number: Any = 0, *_more: Any) -> CarriedPart:
        """Return an argument with which the closed run would have continued as new."""
        if self._early_result is not None:
            return CarriedPart(argument=None, parts=0)
        state = self._ready()
        if state.end is None:
            raise refuse("the run is not over")
        past = replace(state.past, identity=identity_of(state))
        complete = replace(state, resets=resets(state), past=past)
        parts = self._loop.pack_state(complete)
        if not isinstance(number, int) or not 0 <= number < len(parts):
            raise refuse(f"there is no part {number!r}; there are {len(parts)}")
        below = [] if number or not isinstance(state, TeamState) else _cut_short(state)
        return CarriedPart(argument=parts[number], parts=len(parts), cut_short=below)


async def executions_below(state: RunState) -> dict[str, str]:
    """Return the closed executions of the runs below that were cut short with the last turn of a team.

    Raises:
        ActivityError: no worker was free to ask the server in time.

    """
    runs = _cut_short(state) if isinstance(state, TeamState) else []
    if not runs:
        return {}
    found = await workflow.execute_activity(
        FIND_EXECUTIONS,
        runs,
        result_type=RawValue,
        start_to_close_timeout=timedelta(seconds=10),
        schedule_to_close_timeout=timedelta(minutes=1),
        summary=f"newest executions of {len(runs)} runs below",
    )
    return read_payload(found, dict[str, str])


def _cut_short(team: TeamState) -> list[str]:
    """Return the workflow ids of the runs below that were cut short with the team."""
    keys = {start.key for start in team.cut.nodes}
    runs = {result.run_id for result in team.results if result.key in keys and result.run_id is not None}
    return sorted(runs)
