"""What comes from outside, checked where it enters: requests, messages, decisions."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.exceptions import ApplicationError

from perdure.limits import explain
from perdure.messages import Document, Image, Message, Part, Text
from perdure.schema import problem_with
from perdure.wire import INVALID_REQUEST, Decision, RunRequest

from .calls import approval_digest
from .state import Call, State

_Model = TypeVar("_Model", bound=BaseModel)

MOST_USER_BYTES = 1024
"""The user becomes a search attribute. One that the server refuses would hang the run."""


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
    request = _checked("run request", lambda: RunRequest.model_validate(raw))
    if isinstance(request.prompt, list):
        _check_parts("prompt", request.prompt)
    if request.user is not None and len(request.user.encode()) > MOST_USER_BYTES:
        raise refuse(f"run request: user: is longer than {MOST_USER_BYTES} bytes; give a name or an id")
    return request


def message_of(raw: Any) -> Message:
    """What `send` was given: text, a list of parts, or {"text": "..."}."""
    content: Any = raw.get("text", raw) if isinstance(raw, dict) else raw  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if isinstance(content, str) and content.strip():
        return Message.user(content)
    if isinstance(content, list) and content:
        message = _checked("message", lambda: Message(role="user", parts=content))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
        _check_parts("message", message.parts)
        return message
    raise refuse(f'message: send a text, such as "yes, go on", not {_short(content)}')  # pyright: ignore[reportUnknownArgumentType]


def _check_parts(what: str, parts: list[Part]) -> None:
    """People say words and show pictures and documents; calls and their results are not theirs to say."""
    said = False
    for part in parts:
        match part:
            case Text():
                said = said or bool(part.text.strip())
            case Image() | Document():
                said = said or bool(part.data or part.blob)
            case _:
                raise refuse(f"{what}: send text, images and documents, not a {part.kind!r}")
    if not said:
        raise refuse(f"{what}: is empty: say something")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 80 else f"{shown[:77]}..."


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
    _check_arguments(state, call, decision)


def _check_arguments(state: State | None, call: Call, decision: Decision) -> None:
    """A slip of the person's must not use up the approval."""
    tool = state.spec.tool(call.call.name) if state else None
    if decision.arguments is None or tool is None:
        return
    problem = problem_with(decision.arguments, tool.input_schema)
    if problem is not None:
        raise refuse(f"the arguments do not fit {tool.name!r}: {problem}")
