"""Relay: forwards a person's update from the run that got it to the run of its tree that it concerns.

A person talks to the root of a tree. An approval or an answer may concern a child far below.
"""

from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from perdure.wire.effects import Relay
from perdure.wire.names import INVALID_REQUEST, LOST_UPDATE, NO_ROOM, RELAY

from .refusal import refusal

_RPC_TIMEOUT = timedelta(seconds=8)


@activity.defn(name=RELAY)
async def relay(request: Relay) -> Any:
    """Send the update to its run, once over all attempts, and return its result.

    Raises:
        ApplicationError: "InvalidRequest" if the run refuses the update or has ended, "NoRoom" if it takes no
            messages now.

    """
    info = activity.info()
    handle = activity.client().get_workflow_handle(request.run_id)
    try:
        return await handle.execute_update(
            request.update,
            request.argument,
            # The same for all attempts: the server runs an update once for each id.
            id=f"relay-{info.workflow_run_id}-{info.activity_id}",
            result_type=object,
            rpc_timeout=_RPC_TIMEOUT,
        )
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == LOST_UPDATE:
            # Retryable: the server lost the update before any worker saw it.
            raise ApplicationError(cause.message, type=LOST_UPDATE) from None
        message = cause.message if isinstance(cause, ApplicationError) else str(cause)
        is_full = isinstance(cause, ApplicationError) and cause.type == NO_ROOM
        kind = NO_ROOM if is_full else INVALID_REQUEST
        raise ApplicationError(message, type=kind, non_retryable=True) from None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            message = f"run {request.run_id!r} is over"
            raise refusal(message) from None
        raise
