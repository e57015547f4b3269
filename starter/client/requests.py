"""Requests for runs and sessions: validated, as JSON, and compared with that of an id already taken."""

from typing import Any, Final, TypeVar

from pydantic import ValidationError
from temporalio.client import WorkflowExecutionDescription

from perdure.definitions import explain
from perdure.errors import InvalidRequest, RunConflict
from perdure.media import problem_with_attachment
from perdure.messages import Document, Image, Part
from perdure.model import digest
from perdure.texts import find_secret
from perdure.wire.ids import RESERVED, has_child_form
from perdure.wire.plain import problem_as_json
from perdure.wire.requests import RunRequest, SessionRequest

# Memo field. The server keeps it, so a repeated start is recognised without asking a worker.
_REQUEST_DIGEST: Final = "perdure_request"
_START: Final = "perdure_start"

_Request = TypeVar("_Request", RunRequest, SessionRequest)


def build_request(kind: type[_Request], **fields: Any) -> _Request:
    """Build and validate a request. Empty fields are left out, so that equal requests have equal digests.

    Raises:
        InvalidRequest: a field is wrong.

    """
    set_fields = {name: value for name, value in fields.items() if value not in (None, [], {})}
    found = find_secret(set_fields.get("context"), "context")
    if found is not None:
        raise InvalidRequest(
            f"{found} looks like a secret. The context of a run is kept in history, as plain text, for everybody who "
            "may read the run. Let the tool read the key on its worker instead; if it is no secret, rename the field"
        )
    if set_fields.get("stream") is True:
        del set_fields["stream"]
    return validate_request(kind, set_fields)


def validate_request(kind: type[_Request], fields: dict[str, Any]) -> _Request:
    """Build a request from exactly these fields.

    Raises:
        InvalidRequest: a field is wrong.

    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        name = "session" if kind is SessionRequest else "run"
        raise InvalidRequest(f"{name} request: {explain(error)}") from None


def request_json(request: RunRequest | SessionRequest) -> dict[str, Any]:
    """Return the request as JSON values.

    Raises:
        InvalidRequest: it cannot be written as JSON, or not read again.

    """
    try:
        plain = request.to_json()
    except ValueError as error:
        raise InvalidRequest(f"run request: it cannot be written as JSON: {error}") from None
    problem = problem_as_json(plain)
    if problem is not None:
        raise InvalidRequest(f"run request: {problem}")
    return plain


def check_attachments(content: str | list[Part]) -> None:
    """Check that the images and documents of a prompt or message can be read, before anything is sent.

    Raises:
        InvalidRequest: one of them can be read by no provider.

    """
    for part in content if isinstance(content, list) else ():
        problem = problem_with_attachment(part) if isinstance(part, Image | Document) else None
        if problem is not None:
            raise InvalidRequest(f"message: {problem}")


def check_id(run_id: str) -> None:
    """Check an id that a user chose for a run or a session.

    Raises:
        InvalidRequest: it is empty, no text that a server accepts, or of the form of a child run's.

    """
    if not run_id.strip():
        raise InvalidRequest("id: is empty; leave it out, or choose one")
    if problem := problem_as_json(run_id):
        raise InvalidRequest(f"id: {problem}")
    # A run that another run starts gets such an id: two runs would meet in one.
    if has_child_form(run_id):
        raise InvalidRequest(
            f"id {run_id!r}: {RESERVED!r} is for runs that other runs start; choose another id"
        )


def request_memo(plain: dict[str, Any], start: str | None = None) -> dict[str, str]:
    """Return the memo by which `has_request` knows the request again, and `is_from` the start."""
    return {_REQUEST_DIGEST: digest(plain)} | ({} if start is None else {_START: start})


async def is_from(description: WorkflowExecutionDescription, start: str) -> bool:
    """Return whether the run was started by this start, whose answer may have got lost."""
    return bool((await description.memo()).get(_START) == start)


async def has_request(description: WorkflowExecutionDescription, plain: dict[str, Any]) -> bool:
    """Return whether the run was started with this request."""
    return bool((await description.memo()).get(_REQUEST_DIGEST) == digest(plain))


def check_workflow_type(run_id: str, description: WorkflowExecutionDescription, expected: str) -> None:
    """Check the type of the workflow that has the id; an id chosen by a caller may be that of any workflow.

    Raises:
        RunConflict: it is of another type.

    """
    if description.workflow_type != expected:
        raise RunConflict(
            f"id {run_id!r} belongs to a workflow of type {description.workflow_type!r}; choose another id"
        )
