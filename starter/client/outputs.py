"""Typed outputs: results and replies whose output is a value of the agent's output type."""

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from perdure.definitions import explain
from perdure.errors import OutputMismatch
from perdure.outputs import OutputForm
from perdure.wire.results import RunResult, TurnReply

if TYPE_CHECKING:
    from perdure.members import Member

_Ended = TypeVar("_Ended", RunResult[Any], TurnReply[Any])


def name_of(agent: "str | Member") -> str:
    """Return the name by which workers know the agent, swarm, graph or pattern."""
    return agent if isinstance(agent, str) else agent.name


def form_of(agent: "str | Member | None") -> OutputForm | None:
    """Return the form of the agent's output; None for plain text, a team, or an agent known by its name alone."""
    if agent is None or isinstance(agent, str):
        return None  # most clients know names alone, and need no definitions
    from perdure.agent import Agent

    return agent.output_form if isinstance(agent, Agent) else None


def with_typed_output(ended: _Ended, form: OutputForm | None, run_id: str) -> _Ended:
    """Return the result or reply with its output as a value of the type; None stays None.

    Raises:
        OutputMismatch: the output does not fit: the worker has another version of the type.

    """
    if form is None or ended.output is None:
        return ended
    try:
        return ended.model_copy(update={"output": form.read(ended.output)})
    except ValidationError as error:
        raise OutputMismatch(
            f"the output of {run_id!r} does not fit the output_type of this program's agent, which may be of another "
            f"version than the worker's: {explain(error)}",
            ended.output,
        ) from None
