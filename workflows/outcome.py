"""End of a workflow: the run's end as a result or an error."""

import asyncio

from temporalio.exceptions import ApplicationError

from perdure.wire.results import RunResult

from .engine.state import End


def return_or_raise(end: End, result: RunResult) -> RunResult:
    """Return the result of every end that is no failure: limits are results, never exceptions.

    Raises:
        ApplicationError: the run failed; its type is the kind, its detail the RunResult.
        CancelledError: the run was cancelled.

    """
    if end.failure is not None and not end.answers:
        raise ApplicationError(end.failure.message, result, type=end.failure.kind, non_retryable=True)
    if end.stop_reason == "cancelled":
        raise asyncio.CancelledError
    return result
