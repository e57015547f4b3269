"""An agent as a child of somebody else's workflow."""

from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ApplicationError

from perdure.limits import Limits
from perdure.messages import Part
from perdure.texts import find_secret
from perdure.wire.names import WORKFLOW
from perdure.wire.results import RunResult

from .inputs import check_id, request_of
from .payloads import read_json


async def run_agent(
    agent: str,
    prompt: str | list[Part],
    *,
    id: str | None = None,  # noqa: A002 - Temporal's own word for it
    user: str | None = None,
    roles: Sequence[str] = (),
    limits: Limits | None = None,
    context: dict[str, Any] | None = None,
    task_queue: str | None = None,
) -> RunResult:
    """Run an agent as a child workflow of the calling workflow; waits for its result.

    Cancelling the caller cancels the run. The run can be watched, sent messages and approved like
    any other, under its own id.

    Raises:
        ApplicationError: "InvalidRequest": the request is wrong; nothing was started.
        ChildWorkflowError: the run failed; its cause names the kind.

    """
    # Checked here and raised as a failure: any other error would leave the caller's task failing.
    fields = {"agent": agent, "prompt": prompt, "user": user, "roles": list(roles), "limits": limits}
    request = request_of({**fields, "context": context or {}, "stream": False})
    secret = find_secret(request.context, "context")
    if secret is not None:  # a warning: the caller's own history may hold it already
        workflow.logger.warning("%s looks like a secret, and is kept in history as plain text", secret)
    if id is not None:
        check_id(id)
    # Plain JSON in and out: the caller's data converter need not know our types.
    answer = await workflow.execute_child_workflow(
        WORKFLOW,
        request.to_json(),
        id=id or str(workflow.uuid4()),
        task_queue=task_queue,
        result_type=RawValue,
        retry_policy=RetryPolicy(maximum_attempts=1),
        static_summary=f"agent {agent}",
    )
    try:
        return RunResult.model_validate(read_json(answer))
    except ValueError as error:
        message = f"the result of {agent!r} cannot be read: {error}"
        raise ApplicationError(message, type="bug", non_retryable=True) from None
