"""Refusal of a request that no repeat would mend."""

from temporalio.exceptions import ApplicationError

from perdure.wire.names import INVALID_REQUEST


def refusal(message: str) -> ApplicationError:
    """Return the error of an activity whose request is wrong: Temporal does not retry it."""
    return ApplicationError(message, type=INVALID_REQUEST, non_retryable=True)
