"""Resolution of a run's spec: the first activity of a run, whose result history keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from perdure.texts import truncate_middle
from perdure.wire.effects import Asker, ResolveRequest
from perdure.wire.names import (
    BLOB_STORE_FAILED,
    INSTRUCTIONS_FAILED,
    MCP_NOT_READY,
    RESOLVE_AGENT,
    SPEC_UNREADABLE,
    UNKNOWN_AGENT,
)
from perdure.wire.requests import Redrive, RunRequest
from perdure.wire.results import Failure
from perdure.wire.spec import AnySpec, ResolvedAgent
from perdure.wire.tree import ChildInput

from .ending import EndedBeforeBeginningError
from .payloads import read_payload
from .waits import growing_pauses

LAYOUT = 1
"""Layout in which a run that begins now writes its history, if the resolving worker knows it too."""

_CHANGED_WITHIN = timedelta(minutes=1)
"""Time for a redrive to fetch its agent, the wait for a worker's slot included: the run stands still meanwhile."""
_ATTEMPTS = 10
"""Attempts to fetch the agent before the run says why it cannot begin: some seconds, if no worker serves it."""
_FIRST_LOOK, _LONGEST_LOOK = timedelta(minutes=10), timedelta(hours=6)
"""Times for which an activity waits for a worker that serves the agent."""
_TRANSIENT = (
    *(BLOB_STORE_FAILED, INSTRUCTIONS_FAILED, MCP_NOT_READY, SPEC_UNREADABLE),
    *("RPCError", "TimeoutError"),
)
"""Types of transient errors: the blob store, an MCP server, what instructions are made of, the parent run or every
worker is out of reach."""


async def resolve(
    request: RunRequest,
    child: ChildInput | None = None,
    *,
    deadline: datetime | None,
    held_up: Callable[[Failure], None],
) -> ResolvedAgent:
    """Return the agent as it is now; a deploy after this changes nothing for the run.

    A child gets what its parent pinned, whatever was deployed in between. While the spec cannot be fetched
    or stored (a full disk, a parent out of reach) the run waits, and `held_up` is called with the reason. So it does
    while no worker of the queue serves the agent: the activity then goes on, without events, until one does.

    Raises:
        ApplicationError: "InvalidRequest" of the resolving worker; "UnknownAgent" of one that no other stands beside.
        EndedBeforeBeginningError: the deadline passed first.

    """
    resolve_request, pauses, looks = _request_for(request, child), growing_pauses(), _LookingAgain()
    while True:
        left = _time_left(deadline, child)
        try:
            # The bound costs no timer. Without a deadline the run may wait for a worker's slot, however long.
            resolved = await _run_activity(resolve_request, within=looks.bound(left), attempts=looks.attempts)
            if not resolved.needs_asker:
                return resolved
            resolve_request = resolve_request.model_copy(update={"asker": asker_of(request)})
            continue
        except NotServedError as error:
            held_up(Failure(kind=UNKNOWN_AGENT, message=error.message))
            looks = looks.next()
            continue
        except ApplicationError as error:
            if error.type not in _TRANSIENT:
                raise
            held_up(Failure(kind=error.type or "", message=error.message))
        except ActivityError as error:
            if not isinstance(error.cause, TimeoutError):
                raise
            held_up(Failure(kind="timeout", message="no worker has fetched the agent in time"))
        left = _time_left(deadline, child)
        pause = next(pauses)
        await workflow.sleep(pause if left is None else min(pause, left), summary="try again to begin")


def _time_left(deadline: datetime | None, child: ChildInput | None) -> timedelta | None:
    """Return the time until the deadline, or None without one.

    Raises:
        EndedBeforeBeginningError: it has passed.

    """
    if deadline is None:
        return None
    left = deadline - workflow.now()
    if left > timedelta():
        return left
    if child is not None and child.clock_at == deadline:
        raise EndedBeforeBeginningError("node_timeout")
    from_above = child is not None and child.deadline_at == deadline
    raise EndedBeforeBeginningError(child.deadline_reason if child and from_above else "deadline")


async def resolve_anew(
    spec: AnySpec,
    request: RunRequest,
    redrive: Redrive,
    *,
    cost_limited: bool,
    within: timedelta = _CHANGED_WITHIN,
) -> ResolvedAgent:
    """Return the agent with which a parked run or a session goes on: its own or the newest, perhaps of another model.

    Raises:
        ApplicationError: as `resolve`; also for a model without a known price, where the run has a cost
            limit, and when the spec cannot be stored.

    """
    # The run itself is the parent to query, so that the spec is the pinned one on any worker.
    own = None if redrive.newest else workflow.info().workflow_id
    wanted = ResolveRequest(
        agent=spec.name,
        as_of=workflow.now(),
        cost_limited=cost_limited,
        parent=own,
        spec_digest=None if redrive.newest else spec.full_digest,
        model=redrive.model,
        layout=LAYOUT,
    )
    resolved = await _run_activity(wanted, within=within)
    if not resolved.needs_asker:
        return resolved
    return await _run_activity(wanted.model_copy(update={"asker": asker_of(request)}), within=within)


def asker_of(request: RunRequest) -> Asker:
    """Return the facts of the request by which instructions are made."""
    return Asker(user=request.user, roles=request.roles, context=request.context)


class NotServedError(ApplicationError):
    """No worker that the activity met serves the agent; the message names the agents that they serve."""


@dataclass(frozen=True)
class _LookingAgain:
    """Bounds of one activity that fetches the agent, by the number of those that found no worker that serves it."""

    found_none: int = 0

    @property
    def attempts(self) -> int:
        """Attempts of the activity; 0 is without bound. The first tells soon, the others wait for a worker."""
        return _ATTEMPTS if self.found_none == 0 else 0

    def bound(self, left: timedelta | None) -> timedelta | None:
        """Return the time for the activity, of the time that is left to the deadline."""
        if self.found_none == 0:
            return left
        # Each tells anew which agents there are, and is a few events: so it comes ever more rarely.
        longest: timedelta = min(_FIRST_LOOK * 2 ** (self.found_none - 1), _LONGEST_LOOK)
        return longest if left is None else min(longest, left)

    def next(self) -> "_LookingAgain":
        """Return the bounds of the activity that follows one that found no worker."""
        return _LookingAgain(min(self.found_none + 1, 20))


async def _run_activity(
    request: ResolveRequest, *, within: timedelta | None, attempts: int = _ATTEMPTS
) -> ResolvedAgent:
    try:
        resolved = await workflow.execute_activity(
            RESOLVE_AGENT,
            request,
            result_type=RawValue,
            start_to_close_timeout=timedelta(seconds=10),
            schedule_to_close_timeout=within,
            retry_policy=RetryPolicy(maximum_attempts=attempts),
            summary=f"resolve {request.agent}",
        )
        return read_payload(resolved, ResolvedAgent)
    except ValueError as error:
        # A worker of a later version may have written it: another worker may read the next answer.
        message = f"the spec cannot be read: {truncate_middle(str(error), 1000)}"
        raise ApplicationError(message, type=SPEC_UNREADABLE) from None
    except ActivityError as error:
        # The activity's own error is the caller's answer, without Temporal's wrapping.
        cause = error.cause
        if not isinstance(cause, ApplicationError):
            raise
        # A worker that may not be asked again (of 0.3.0, or alone on its queue) says so.
        is_elsewhere = cause.type == UNKNOWN_AGENT and not cause.non_retryable
        kind = NotServedError if is_elsewhere else ApplicationError
        raise kind(cause.message, type=cause.type, non_retryable=True) from None


def _request_for(request: RunRequest, child: ChildInput | None) -> ResolveRequest:
    limited = request.limits is not None and request.limits.cost_usd is not None
    if child is None:
        return ResolveRequest(agent=request.agent, as_of=workflow.now(), cost_limited=limited, layout=LAYOUT)
    return ResolveRequest(
        agent=request.agent,
        as_of=child.lineage.as_of,
        cost_limited=limited or child.lease.amount.cost_microusd is not None,
        parent=child.lineage.parent,
        spec_digest=child.lineage.spec_digest,
        layout=LAYOUT,
    )
