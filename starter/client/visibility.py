"""Conditions of Temporal visibility queries, by which runs are found without asking a worker."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from perdure.errors import InvalidRequest
from perdure.wire.attributes import AGENT_NAME, AGENT_PARKED_AT, AGENT_PARKED_FOR, AGENT_STATUS, AGENT_USER
from perdure.wire.names import WORKFLOWS
from perdure.wire.results import ENDED

from .causes import match_cause

# A terminated run keeps the status that it had set last, so the server's own state counts too.
OPEN: Final = 'ExecutionStatus = "Running"'
WAITING: Final = f'{AGENT_STATUS.name} IN ("waiting_approval", "waiting_person", "parked") AND {OPEN}'


def quote(value: str) -> str:
    """Return the value as a string literal."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def join(*conditions: str | None) -> str:
    """Return the conditions, joined with AND; those that are None or empty are left out."""
    return " AND ".join(condition for condition in conditions if condition)


def equals(name: str, value: str | None) -> str | None:
    """Return the condition that an attribute has a value, or None for no value."""
    return None if value is None else f"{name} = {quote(value)}"


def is_of_type(types: Sequence[str] = WORKFLOWS) -> str:
    """Return the condition that a workflow is of these types."""
    return f"WorkflowType IN ({', '.join(quote(name) for name in types)})"


def runs(
    *,
    status: str | None,
    agent: str | None,
    user: str | None,
    query: str | None,
    task_queue: str | None = None,
) -> str:
    """Return the query for runs and sessions of that status, agent, user and task queue.

    Raises:
        InvalidRequest: runs are not listed by that status.

    """
    if status in ("thinking", "acting"):
        raise InvalidRequest(
            f"runs are not listed by {status!r}: list 'working', and ask each for its status"
        )
    return join(
        is_of_type(),
        equals(AGENT_STATUS.name, status),
        equals(AGENT_NAME.name, agent),
        equals(AGENT_USER.name, user),
        equals("TaskQueue", task_queue),
        OPEN if status is not None and status not in ENDED else None,
        f"({query})" if query else None,
        # A run that continued as new is listed by its newest execution only.
        'ExecutionStatus != "ContinuedAsNew"',
    )


def is_parked(*, cause: str | None, older_than: timedelta | None) -> str:
    """Return the condition that a run is parked: for that cause, for that long.

    Raises:
        InvalidRequest: there is no such cause.

    """
    name = AGENT_PARKED_FOR.name
    before = None if older_than is None else datetime.now(UTC) - older_than
    return join(
        f"{name} IS NOT NULL" if cause is None else equals(name, match_cause(cause)),
        f"{AGENT_PARKED_AT.name} < {quote(before.isoformat())}" if before else None,
    )
