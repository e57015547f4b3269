"""What comes from outside, checked where it enters: requests, messages, decisions."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.exceptions import ApplicationError

from perdure.limits import explain
from perdure.messages import Message
from perdure.wire import INVALID_REQUEST, Decision, RunRequest

from .calls import approval_digest
from .state import State

_Model = TypeVar("_Model", bound=BaseModel)


def refuse(message: str) -> ApplicationError:
    """The error a caller gets for input that is wrong."""
    return ApplicationError(message, type=INVALID_REQUEST, non_retryable=True)


def _checked(what: str, make: Callable[[], _Model]) -> _Model:
    try:
        return make()
    except ValidationError as error:
        raise refuse(f"{what}: {explain(error)}") from None


def request_of(raw: Any) -> RunRequest:
    """The run's input, however it was written."""
    return _checked("run request", lambda: RunRequest.model_validate(raw))


def message_of(raw: Any) -> Message:
    """What `send` was given: text, a list of parts, or {"text": "..."}."""
    content = raw.get("text") if isinstance(raw, dict) else raw  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if isinstance(content, str) and content.strip():
        return Message.user(content)
    if isinstance(content, list) and content:
        try:
            return Message(role="user", parts=content)  # pyright: ignore[reportUnknownArgumentType]
        except ValidationError as error:
            raise refuse(f"message: {explain(error)}") from None
    raise refuse(f'message: send a text, such as "yes, go on", not {content!r}')


def decision_of(raw: Any) -> Decision:
    """What `decide` was given."""
    return _checked("decision", lambda: Decision.model_validate(raw))


def check_decision(state: State | None, decision: Decision) -> None:
    """Refuse a decision about nothing, about something else, or one that changes nothing.

    Raises:
        ApplicationError: the caller's; nothing was decided.

    """
    calls = state.calls if state else ()
    held = {call.call.id: call for call in calls if call.state == "asking" and call.kind != "person"}
    call = held.get(decision.call_id)
    if call is None:
        waiting = ", ".join(held) or "none"
        raise refuse(f"call {decision.call_id!r} does not wait for an approval; waiting: {waiting}")
    if decision.digest is not None and decision.digest != approval_digest(call.call):
        raise refuse(f"call {decision.call_id!r} is not what you saw: its digest is another; look again")
    if decision.arguments is not None and not decision.allow:
        raise refuse("arguments can be changed only when the call is allowed")
