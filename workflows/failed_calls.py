"""Failed tool calls: errors of their activities as results for the model.

Whether a failed write may have had its effect is known from its last error alone only if that attempt was the
first. Temporal tells a workflow nothing about earlier attempts. Perdure's own activities pass it on from attempt to
attempt; of a remote tool's, and of an answer that could not be kept, the server's history has their number.
"""

from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    RetryState,
    TimeoutError,
    is_cancelled_exception,
)

from perdure.messages import Text, ToolResult
from perdure.texts import mask_secrets, truncate_middle
from perdure.wire.names import (
    BLOB_STORE_FAILED,
    COUNT_ATTEMPTS,
    MAY_HAVE_EFFECT,
    NOT_CALLED,
    TOO_LARGE_TYPES,
    WORKER_SHUTDOWN,
)
from perdure.wire.spec import ToolSpec
from perdure.wire.uncertain import mark_uncertain

from .engine.events import CallReturned, Event
from .engine.state import Call
from .payloads import read_json

_COUNT_WITHIN = timedelta(seconds=10)
_NOT_REGISTERED = ("NotFoundError", "ActivityNotRegisteredError")
"""Error types of Temporal's SDKs: the worker knows no such activity, so it ran nothing."""
_NOT_REACHED = ("ConnectionRefusedError", "ConnectError", "ConnectTimeout", "NewConnectionError", "gaierror")
"""Error types of Python's HTTP clients before anything was sent, as a remote worker in Python reports them."""


def unreadable_result(call: Call, tool: ToolSpec, error: Exception) -> Event:
    """Return the result of a call whose answer nobody can read."""
    text = f"The tool's answer cannot be read: {type(error).__name__}. It may have taken effect."
    result = _error_result(call, text, None)
    return CallReturned(result=mark_uncertain(result) if tool.effect == "write" else result)


async def failed_result(call: Call, tool: ToolSpec, error: BaseException, *, repeated: bool) -> ToolResult:
    """Return the result of a call whose activity failed.

    `repeated` is true when an earlier attempt of the run, or the time before a reset, may have made the same call.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    result = _error_result(call, *_describe(tool, error, cause))
    if tool.effect != "write":
        return result
    if isinstance(cause, ApplicationError) and cause.type in (BLOB_STORE_FAILED, *TOO_LARGE_TYPES):
        return mark_uncertain(result, "")  # it has had its effect, as its text says
    if repeated:
        uncertain = True
    elif tool.kind == "remote":
        uncertain = await _remote_may_have_effect(tool, error, cause)
    else:
        # Any other error of our own activity comes with a type that says what it knows.
        uncertain = not (isinstance(cause, ApplicationError) and cause.type in (NOT_CALLED, *_NOT_REGISTERED))
    return mark_uncertain(result) if uncertain else result


def _describe(tool: ToolSpec, error: BaseException, cause: BaseException | None) -> tuple[str, str]:
    """Return the words and the kind of the error."""
    if isinstance(cause, TimeoutError):
        if tool.kind == "remote":
            return f"The tool did not answer in time, in {tool.retry.attempts} attempts.", "tool_timeout"
        return "The tool did not answer: no worker kept the call alive to its end.", "tool_timeout"
    if isinstance(cause, ApplicationError):
        if cause.type == BLOB_STORE_FAILED:
            # The tool had returned: only its answer could not be written down.
            text = f"The tool has done its work, but its result could not be kept: {cause.message}"
            return text, "tool_error"
        if cause.type in TOO_LARGE_TYPES:
            return f"The tool has done its work, but its result is too large: {cause.message}", "tool_error"
        lost = cause.type in (MAY_HAVE_EFFECT, WORKER_SHUTDOWN)
        return cause.message, "tool_timeout" if lost else "tool_error"
    if is_cancelled_exception(error):
        text = "The run was ended while this call was under way; it may or may not have taken effect."
        return text, "tool_error"
    return str(cause or error), "tool_error"


def _error_result(call: Call, text: str, kind: str | None) -> ToolResult:
    content = Text(text=truncate_middle(mask_secrets(text)))
    return ToolResult(
        call_id=call.call.id, name=call.call.name, content=[content], is_error=True, error_kind=kind
    )


async def _remote_may_have_effect(tool: ToolSpec, error: BaseException, cause: BaseException | None) -> bool:
    """Check whether any attempt of a remote write may have had its effect."""
    if not isinstance(error, ActivityError) or not isinstance(cause, ApplicationError):
        return True
    answered = cause.non_retryable or error.retry_state == RetryState.NON_RETRYABLE_FAILURE
    if not answered and cause.type not in (*_NOT_REACHED, *_NOT_REGISTERED):
        return True
    return not await _was_first_attempt(tool, error)


async def _was_first_attempt(tool: ToolSpec, error: ActivityError) -> bool:
    """Check whether the attempt that failed was the only one."""
    if tool.retry.attempts == 1:
        return True
    if error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED:
        return False
    # The time tells nothing: an attempt may name the delay before the next one.
    return await count_attempts(error, tool.name) == 1


async def count_attempts(error: ActivityError, name: str) -> int | None:
    """Return how often Temporal made the failed call, from the server's history; None where nobody knows."""
    with suppress(ActivityError, ValueError):
        attempts = await workflow.execute_activity(
            COUNT_ATTEMPTS,
            error.started_event_id,
            result_type=RawValue,
            start_to_close_timeout=_COUNT_WITHIN,
            schedule_to_close_timeout=3 * _COUNT_WITHIN,
            retry_policy=RetryPolicy(maximum_attempts=3),
            summary=f"attempts of {name}",
        )
        counted = read_json(attempts)
        return counted if isinstance(counted, int) and counted > 0 else None
    return None
