"""Errors of Temporal's client as errors of ours, which say what to do next.

The server and the SDK report some conditions by text only, or by a status that means several things. The
texts are matched here and nowhere else.
"""

from typing import Final

from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, TerminatedError, TimeoutError
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import (
    InvalidRequest,
    NotReachable,
    PerdureError,
    RunEnded,
    RunFailed,
    RunNotFound,
    ServerBusy,
)
from perdure.wire.names import LOST_UPDATE, NO_ROOM, SESSION_OVER
from perdure.wire.results import RunResult

# Texts of the server for a run that has ended, or ended under the call.
_ENDED: Final = ("already completed", "aborted by closing workflow")
# Texts of the SDK for a connection that broke under a call. Their status means nothing.
_BROKEN: Final = ("transport error", "h2 protocol error")
# Text of the server for a run that takes no more updates until it has continued as new.
_NO_ROOM: Final = "limit on the total number of distinct updates"
# Text of the server for a run that takes no more signals until it has continued as new. A cancellation is none.
_NO_SIGNALS: Final = "limit for signal events"
# Text for a message that is too large. It has the status of a busy server, but trying again never helps.
_TOO_LARGE: Final = "larger than max"


def rpc_error(error: RPCError) -> PerdureError:
    """Return the error for a call that the server refused, or did not answer."""
    return unreachable_error(error) or InvalidRequest(f"Temporal refused: {error.message}")


def unreachable_error(error: RPCError) -> NotReachable | None:
    """Return the error for a server that is busy or did not answer, or None if it did."""
    if is_server_busy(error):
        return ServerBusy(f"the Temporal server has too much to do; try again later: {error.message}")
    if is_server_away(error):
        return NotReachable(f"the Temporal server does not answer: {error.message}")
    return None


def is_server_away(error: RPCError) -> bool:
    """Return whether no server answered: it may be back in a moment."""
    return error.status == RPCStatusCode.UNAVAILABLE or any(text in error.message for text in _BROKEN)


def is_server_busy(error: BaseException | None) -> bool:
    """Return whether the server has no room for this query, update or start at the moment."""
    busy = isinstance(error, RPCError) and error.status == RPCStatusCode.RESOURCE_EXHAUSTED
    return busy and _TOO_LARGE not in str(error)


def run_error(error: RPCError, run_id: str, namespace: str, within: float) -> PerdureError:
    """Return the error for a call on a run. `within` is the time that a worker had, in seconds."""
    ended = any(text in error.message for text in _ENDED)
    if error.status == RPCStatusCode.NOT_FOUND and not ended:
        return RunNotFound(f"there is no run {run_id!r} in namespace {namespace!r}")
    if ended:
        return run_ended_error(run_id)
    timed_out = error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
    if timed_out or "Timeout expired" in error.message:
        return NotReachable(no_answer_message(run_id, within))
    if (unreachable := unreachable_error(error)) is not None:
        return unreachable
    if _NO_ROOM in error.message:
        return ServerBusy(f"run {run_id!r} takes no more requests until its pending calls have ended")
    if _NO_SIGNALS in error.message:
        return ServerBusy(
            f"run {run_id!r} takes no more signals, such as a stop, until its pending calls have ended; "
            "it can be cancelled"
        )
    if "no poller" in error.message:
        return NotReachable(no_answer_message(run_id, within))
    if "Workflow Task in failed state" in error.message:
        return NotReachable(f"the worker cannot go on with run {run_id!r}: its log says why")
    return PerdureError(f"Temporal refused: {error.message}")


def no_answer_message(run_id: str, within: float) -> str:
    """Return the message for a run about which no worker answers."""
    return (
        f"no worker answered for run {run_id!r} within {within:.0f} s; "
        "is one running? Start it with `perdure worker FILE`"
    )


def run_ended_error(run_id: str) -> RunEnded:
    """Return the error for a call on a run that has ended."""
    return RunEnded(f"run {run_id!r} is over; look at it with `perdure show {run_id}`")


def session_ended_error(session_id: str) -> RunEnded:
    """Return the error for a message to a session that has ended."""
    return RunEnded(
        f"session {session_id!r} is over; choose another id, or open it anew with reopen=True (--new)"
    )


def run_failure(error: WorkflowFailureError) -> RunFailed:
    """Return the error for a run that failed, with the result that it had."""
    cause = error.cause
    match cause:
        case ApplicationError():
            results = [RunResult.model_validate(detail) for detail in cause.details[:1]]
            return RunFailed(cause.message, kind=cause.type or "bug", result=results[0] if results else None)
        case TerminatedError():
            return RunFailed("the run was terminated", kind="Terminated")
        case TimeoutError():
            return RunFailed("the workflow's own timeout ended the run", kind="TimedOut")
        case _:
            return RunFailed(str(cause), kind=type(cause).__name__)


def is_lost_update(error: WorkflowUpdateFailedError) -> bool:
    """Return whether no workflow code has seen the update, so that sending it again is safe.

    A worker's SDK can lose an update together with its workflow task. The server then refuses it by itself.
    """
    return isinstance(error.cause, ApplicationError) and error.cause.type == LOST_UPDATE


def refusal_error(error: WorkflowUpdateFailedError) -> PerdureError:
    """Return the error for an update that the run refused, or that failed in it."""
    cause = error.cause
    message = cause.message if isinstance(cause, ApplicationError) else str(cause)
    match cause.type if isinstance(cause, ApplicationError) else None:
        case type_ if type_ == SESSION_OVER:
            return RunEnded(message)
        case type_ if type_ == NO_ROOM:
            return ServerBusy(message)
        case _:
            return InvalidRequest(message)
