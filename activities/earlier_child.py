"""Earlier child: the end of a run that an earlier execution of its parent has left behind.

A run that was reset starts its children anew, under the ids that they had. The children of the execution before the
reset may still go on, though nobody waits for them any more.
"""

from typing import Final

from temporalio import activity
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from perdure.wire.effects import EarlierChild
from perdure.wire.names import END_EARLIER_CHILD, WORKFLOWS

_REASON: Final = "its parent was reset or started again, and has started this child anew"


@activity.defn(name=END_EARLIER_CHILD)
async def end_earlier_child(request: EarlierChild) -> bool:
    """End the run that has this id, if it is a child of an earlier execution of the calling run.

    Returns whether the id is free. A run of anybody else goes on, and keeps its id.
    """
    client = activity.client()
    try:
        described = await client.get_workflow_handle(request.run_id).describe()
        if described.status != WorkflowExecutionStatus.RUNNING:
            return True
        if not _is_left_behind(described):
            return False
        # By its run id: the id may by now be that of another run.
        await client.get_workflow_handle(request.run_id, run_id=described.run_id).terminate(reason=_REASON)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    return True


def _is_left_behind(described: WorkflowExecutionDescription) -> bool:
    """Return whether the server says that an earlier execution of the calling run has started this one."""
    info = activity.info()
    return (
        described.workflow_type in WORKFLOWS
        and described.parent_id == info.workflow_id
        and described.parent_run_id != info.workflow_run_id
    )
