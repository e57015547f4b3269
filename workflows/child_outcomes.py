"""Outcomes of child runs that gave no result."""

from contextlib import suppress

from pydantic import ValidationError
from temporalio.exceptions import (
    ApplicationError,
    ChildWorkflowError,
    TerminatedError,
    TimeoutError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

from perdure.messages import Usage
from perdure.scheduling import Start
from perdure.texts import mask_secrets, truncate_middle
from perdure.wire.results import Failure, RunResult

from .engine.family import NOT_HEARD
from .engine.leftovers import unread_lines


def outcome_of_bug(key: str, error: Exception) -> RunResult:
    """Return the outcome of a run whose result a bug of ours has lost."""
    failure = Failure(
        kind="bug", message=truncate_middle(mask_secrets(f"{type(error).__name__}: {error}"), 1000)
    )
    usage = Usage(estimated=True)
    return RunResult(agent=key, stop_reason="error", error=failure, usage=usage, cost_microusd=None)


def outcome_of_error(start: Start, error: BaseException, *, began: bool = True) -> RunResult:
    """Return the outcome of a run that gave no result: as much as its end says."""
    cause = error.cause if isinstance(error, ChildWorkflowError) else error
    name = start.member or start.node
    if isinstance(cause, ApplicationError) and cause.details:
        with suppress(ValidationError):
            return RunResult.model_validate(cause.details[0])
    if is_cancelled_exception(error):
        return RunResult(
            agent=name,
            stop_reason="cancelled",
            usage=Usage(estimated=began),
            cost_microusd=None if began else 0,
            missing=_left_without_result(start, began=began),
        )
    kind, message = "bug", str(cause or error)
    if isinstance(cause, ApplicationError):
        kind, message = cause.type or "bug", cause.message
    elif isinstance(cause, TerminatedError):
        kind, message = "Terminated", "the run was terminated"
    elif isinstance(cause, TimeoutError):
        kind, message = "TimedOut", "the workflow's own timeout ended the run"
    elif isinstance(error, WorkflowAlreadyStartedError):
        kind, message = "conflict", f"a run {error.workflow_id!r} goes on already"
    elif isinstance(error, ValueError):
        message = f"the result cannot be read: {error}"
    failure = Failure(kind=kind, message=truncate_middle(mask_secrets(message)))
    cut = kind in ("Terminated", "TimedOut")  # then the lease says what it may have used
    unread = isinstance(error, ValueError)  # it ended as it should, but nobody knows with which cost
    return RunResult(
        agent=name,
        stop_reason="error",
        error=failure,
        usage=Usage(estimated=cut or unread),
        cost_microusd=None if cut or unread else 0,
        missing=_left_without_result(start, began=began),
    )


def _left_without_result(start: Start, *, began: bool) -> list[str]:
    """Return what is left undone by a run of which there is no result."""
    if began:
        return [NOT_HEARD]
    handed_on = start.handed_on.messages if start.handed_on else []
    return ["the task: the run never began", *unread_lines(handed_on)]
