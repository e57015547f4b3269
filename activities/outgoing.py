"""Last guard of what leaves our activities: errors and heartbeats, with secrets masked.

Texts are redacted where they are made, before they are cut. This guard is for what nobody foresaw: a bug's exception,
a tool that heartbeats by Temporal's own means.
"""

import asyncio
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from perdure.texts import describe_error
from perdure.wire.names import ACTIVITIES

from .content.redact import mask_value, redact, redact_and_cut

_LONGEST_CHAIN: Final = 6
"""Causes of an error that are kept; it also ends a chain that is a circle."""


class OutgoingGuard(Interceptor):
    """Interceptor that redacts errors and heartbeats of Perdure's activities; others are the user's affair."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Guard the activity."""
        return _Guard(next)


class _Guard(ActivityInboundInterceptor):
    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(_GuardedHeartbeats(outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        try:
            return await super().execute_activity(input)
        except asyncio.CancelledError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if activity.info().activity_type not in ACTIVITIES:
                raise
            raise redact_failure(error) from redact_cause(error, _LONGEST_CHAIN)


class _GuardedHeartbeats(ActivityOutboundInterceptor):
    def heartbeat(self, *details: Any) -> None:
        if activity.info().activity_type in ACTIVITIES:
            details = tuple(_redact_detail(detail) for detail in details)
        super().heartbeat(*details)


def redact_failure(error: BaseException) -> BaseException:
    """Return the error for Temporal, with secrets masked; the same type and retries."""
    if isinstance(error, ApplicationError):
        details = [_redact_detail(detail) for detail in error.details]
        failure = ApplicationError(
            redact(error.message),
            *details,
            type=error.type,
            non_retryable=error.non_retryable,
            next_retry_delay=error.next_retry_delay,
            category=error.category,
        )
    elif isinstance(error, FailureError):
        return error  # Temporal's own, such as a cancellation
    else:
        failure = ApplicationError(redact_and_cut(describe_error(error)), type=type(error).__name__)
    return failure.with_traceback(error.__traceback__)


def redact_cause(error: BaseException, depth: int) -> BaseException | None:
    """Return the error's chain of causes, with secrets masked."""
    cause = error.__cause__
    if cause is None or not depth:
        return None
    redacted = redact_failure(cause)
    if redacted is not cause:
        redacted.__cause__ = redact_cause(cause, depth - 1)
    return redacted


def _redact_detail(detail: Any) -> Any:
    """Return the detail with secrets masked; one of our own values has been masked where it was made."""
    return redact(detail) if isinstance(detail, str) else mask_value(detail)
