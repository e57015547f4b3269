"""Relaying: what a person told one run, given to the run of its tree that it is for."""

from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from perdure.wire.effects import Relay
from perdure.wire.names import INVALID_REQUEST, LOST_UPDATE, RELAY

_WITHIN = timedelta(seconds=8)


@activity.defn(name=RELAY)
async def relay(want: Relay) -> Any:
    """Give the update, once however often this is tried, and hand back its answer.

    Raises:
        ApplicationError: "InvalidRequest": the run refused it, or is over.

    """
    info = activity.info()
    handle = activity.client().get_workflow_handle(want.run_id)
    try:
        return await handle.execute_update(
            want.update,
            want.argument,
            id=f"relay-{info.workflow_run_id}-{info.activity_id}",
            result_type=object,
            rpc_timeout=_WITHIN,
        )
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == LOST_UPDATE:
            raise ApplicationError(cause.message, type=LOST_UPDATE) from None  # nobody has seen it: once more
        said = cause.message if isinstance(cause, ApplicationError) else str(cause)
        raise ApplicationError(said, type=INVALID_REQUEST, non_retryable=True) from None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            over = f"run {want.run_id!r} is over"
            raise ApplicationError(over, type=INVALID_REQUEST, non_retryable=True) from None
        raise
