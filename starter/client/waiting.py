"""Approvals and questions that wait in a run and in all runs below it, and the choice among them. Pure.

A call id is unique within its run only. A waiting call is therefore named by its run and its call:
by both apart, or in one word as `RUN_ID/CALL` or as `PATH/CALL`, where the path begins at the root.
"""

from collections.abc import Sequence
from typing import TypeVar

from perdure.errors import InvalidRequest
from perdure.shown import visible
from perdure.wire.results import Approval, Question, RunStatus

from ..display import format_call

_Item = TypeVar("_Item", Approval, Question)


def waiting_approvals(status: RunStatus) -> list[Approval]:
    """Return the calls of the run and of all runs below it that wait for approval."""
    return [item for item in status.waiting if item.kind == "approval"]


def waiting_questions(status: RunStatus) -> list[Question]:
    """Return the questions of the run and of all runs below it that wait for an answer."""
    return [item for item in status.waiting if item.kind == "question"]


def choose_approval(run_id: str, status: RunStatus, call: str | None, child_id: str | None) -> Approval:
    """Return the waiting call that is named, or the only one when nothing is named.

    Raises:
        InvalidRequest: no such call waits, or several do; the message lists them.

    """
    waiting = waiting_approvals(status)
    if not waiting:
        raise InvalidRequest(f"no call of run {run_id!r} waits for approval: the run is {status.doing}")
    return _choose("call", waiting, call, child_id)


def choose_question(run_id: str, status: RunStatus, call: str | None, child_id: str | None) -> Question:
    """Return the waiting question that is named, or the only one when nothing is named.

    Raises:
        InvalidRequest: no such question waits, or several do; the message lists them.

    """
    waiting = waiting_questions(status)
    if not waiting:
        raise InvalidRequest(f"no question of run {run_id!r} waits: the run is {status.doing}")
    return _choose("question", waiting, call, child_id)


def _choose(what: str, waiting: Sequence[_Item], call: str | None, child_id: str | None) -> _Item:
    matching = [item for item in waiting if _matches(item, call, child_id)]
    # The same id may wait in the run itself and below it: the bare id means the run's own call.
    matching = [item for item in matching if not item.path and item.call_id == call] or matching
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InvalidRequest(
            f"{len(matching)} {what}s wait; name the {what} as CALL or RUN_ID/CALL; "
            f"these wait: {list_waiting(matching)}"
        )
    name = "/".join(word for word in (child_id, call) if word)
    raise InvalidRequest(f"no {what} {name!r} waits; these wait: {list_waiting(waiting)}")


def _matches(item: Approval | Question, call: str | None, child_id: str | None) -> bool:
    names = (item.call_id, f"{item.run_id}/{item.call_id}", "/".join([*item.path, item.call_id]))
    return call in (None, *names) and child_id in (None, item.run_id, "/".join(item.path))


def list_waiting(items: Sequence[Approval | Question]) -> str:
    """Return the items in one line, each with the name by which it is chosen."""
    return "; ".join(_label(item) for item in items)


def _label(item: Approval | Question) -> str:
    name = f"{item.run_id}/{item.call_id}" if item.path else item.call_id
    if isinstance(item, Question):
        return f"{name}: {visible(item.text)}"
    return f"{name}: {format_call(item.tool, item.arguments, item.path)}"
