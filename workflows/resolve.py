"""The first thing a run does: fetch its agent's spec, once, into history."""

from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from perdure.wire.effects import ResolveRequest
from perdure.wire.names import BLOB_STORE_FAILED, RESOLVE_AGENT
from perdure.wire.requests import Redrive, RunRequest
from perdure.wire.spec import AgentSpec, ResolvedAgent
from perdure.wire.tree import ChildInput

LAYOUT = 1
"""How a run that begins now writes its history, if the worker that resolves its agent knows it too."""


_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=1), timedelta(minutes=5)
_MAY_PASS = (BLOB_STORE_FAILED, "RPCError", "TimeoutError")
"""Error types: no store, no parent, or no worker that answers in time. All else is what it is."""


async def resolve(
    request: RunRequest, child: ChildInput | None = None, *, held_up: Callable[[str], None]
) -> ResolvedAgent:
    """The agent as it is now; a deploy after this changes nothing for the run.

    A child gets what its parent pinned for it, whatever was deployed in between. While the spec cannot be
    fetched or kept, for a full disk or a parent out of reach, the run waits, and `held_up` is told why.

    Raises:
        ApplicationError: "UnknownAgent" or "InvalidRequest", as the worker said it.

    """
    asked, wait = _request_for(request, child), _FIRST_WAIT
    while True:
        try:
            return await _resolved(asked)
        except ApplicationError as error:
            if error.type not in _MAY_PASS:
                raise
            held_up(error.message)
        except ActivityError as error:
            if not isinstance(error.cause, TimeoutError):
                raise
            held_up("no worker has fetched the agent in time")
        await workflow.sleep(wait * (0.5 + workflow.random().random()), summary="try again to begin")
        wait = min(2 * wait, _LONGEST_WAIT)


async def resolve_anew(spec: AgentSpec, redrive: Redrive, *, cost_limited: bool) -> ResolvedAgent:
    """The agent with which a parked run is to go on: its own or the newest, with another model if wanted.

    Raises:
        ApplicationError: as `resolve`; also for a model that no worker has a price for, where one is needed,
            and when the spec cannot be kept.

    """
    own = None if redrive.newest else workflow.info().workflow_id
    return await _resolved(
        ResolveRequest(
            agent=spec.name,
            as_of=workflow.now(),
            cost_limited=cost_limited,
            parent=own,
            spec_digest=None if redrive.newest else spec.full_digest,
            model=redrive.model,
            layout=LAYOUT,
        )
    )


async def _resolved(asked: ResolveRequest) -> ResolvedAgent:
    try:
        resolved: ResolvedAgent = await workflow.execute_activity(
            RESOLVE_AGENT,
            asked,
            result_type=ResolvedAgent,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=10),
            summary=f"resolve {asked.agent}",
        )
        return resolved
    except ActivityError as error:
        if isinstance(error.cause, ApplicationError):
            raise ApplicationError(error.cause.message, type=error.cause.type, non_retryable=True) from None
        raise


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
