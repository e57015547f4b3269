"""Arguments of a workflow: a request of anybody, and what only the server vouches for.

Whoever may start a workflow chooses its arguments. So the second argument counts only where the server says where it
comes from: a carried state in a run that continued as new, a ChildInput in a run that another run started. Everything
else is refused in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from perdure.definitions import explain
from perdure.wire.ids import child_run_id
from perdure.wire.plain import Undecodable
from perdure.wire.tree import ChildInput

from .inputs import check_id, refuse


@dataclass(frozen=True, kw_only=True)
class Carried:
    """State of this run before it continued as new, and the chunks of its transcript."""

    state: dict[str, Any]
    chunks: Sequence[Any] = ()


def read_arguments(arguments: Sequence[Any]) -> "tuple[Any, Carried | ChildInput | None]":
    """Return the request, and what the arguments behind it are: nothing, in a run that somebody starts.

    Raises:
        ApplicationError: "InvalidRequest": the server does not say that they are ours.

    """
    request, further = (arguments or (None,))[0], arguments[1:]
    info = workflow.info()
    # Each run of a cron schedule gets the arguments of the first, and the server calls it a continuation.
    if info.cron_schedule:
        raise refuse("a run cannot have a cron schedule; start runs by a Temporal Schedule")
    # A retry by the server, too, gets the arguments of the first attempt.
    if info.continued_run_id is not None and info.attempt == 1 and further:
        return request, _carried_state(request, *further)
    for position, argument in enumerate(arguments, start=1):
        if isinstance(argument, Undecodable):
            raise refuse(
                f"argument {position} cannot be decoded: {argument.reason}; send JSON, as json/plain"
            )
    if not further or list(further) == [None]:
        check_id(info.workflow_id)
        return request, None
    if info.parent is None:
        raise refuse(f"a run takes one argument, its request, not {len(arguments)}")
    return request, _child_input(further, info)


def _carried_state(request: Any, *arguments: Any) -> Carried:
    # Not refused: the state is ours. A worker that can read it goes on with the run.
    if any(isinstance(argument, Undecodable) for argument in (request, *arguments)):
        raise RuntimeError(f"the carried state cannot be decoded: {arguments}")
    return Carried(state=arguments[0], chunks=arguments[1:])


def _child_input(arguments: Sequence[Any], info: workflow.Info) -> ChildInput:
    assert info.parent is not None, "only a run with a parent has such an input"
    if len(arguments) > 1:
        raise refuse(f"a run that another run started takes two arguments, not {len(arguments) + 1}")
    try:
        child = ChildInput.model_validate(arguments[0])
    except ValidationError as error:
        raise refuse(f"second argument: {explain(error)}") from None
    parent, named = info.parent.workflow_id, child.lineage
    # The parent gets the run's reports and answers for its spec, so it must be the run's real parent.
    if named.parent != parent or info.workflow_id != child_run_id(parent, named.key):
        raise refuse(
            f"second argument: lineage names key {named.key!r} of {named.parent!r}, "
            f"but {parent!r} has started this run as {info.workflow_id!r}"
        )
    return child
