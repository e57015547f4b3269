"""Remote calls: facts about the activities of remote tools, which no worker of ours runs."""

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.exceptions import ApplicationError

from perdure.wire.names import COUNT_ATTEMPTS

_PAGE = 100


@activity.defn(name=COUNT_ATTEMPTS)
async def count_attempts(started_event_id: int) -> int:
    """Return the number of attempts of a closed activity of this run, by the id of its started event.

    Temporal tells a workflow only the last error of an activity. The event of its start is written when the
    activity closes, and has the number of the last attempt.

    Raises:
        ApplicationError: not retryable, when the history has no such event.

    """
    info, client = activity.info(), activity.client()
    run = WorkflowExecution(workflow_id=str(info.workflow_id), run_id=str(info.workflow_run_id))
    page_token = b""
    while True:
        page = await client.workflow_service.get_workflow_execution_history_reverse(
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=info.namespace,
                execution=run,
                maximum_page_size=_PAGE,  # the event is among the newest
                next_page_token=page_token,
            )
        )
        for event in page.history.events:
            if event.event_id == started_event_id:
                return event.activity_task_started_event_attributes.attempt
        page_token = page.next_page_token
        if not page_token:
            raise ApplicationError(f"the history has no event {started_event_id}", non_retryable=True)
