"""Answers of activities, decoded and checked to be about what was asked.

A run waits for each call by its id. An answer that leaves a call out, or names another one, would leave it waiting
for ever: so it counts as one that cannot be read.
"""

from temporalio.common import RawValue

from perdure.wire.effects import HookOutcome, ModelOutcome, ToolOutcome
from perdure.wire.ids import tool_call_id

from .engine.commands import RunHooks
from .engine.state import Call
from .payloads import read_payload


def model_answer(raw: RawValue | None, step: int) -> ModelOutcome:
    """Return the outcome of the step's model call.

    Raises:
        ValueError: it cannot be read, or its calls have not the ids of this step, each one once.

    """
    outcome = read_payload(raw, ModelOutcome)
    ids = [call.id for call in outcome.message.tool_calls]
    if ids != [tool_call_id(step, position) for position in range(1, len(ids) + 1)]:
        raise ValueError(f"its calls are {', '.join(ids)}, and not those of step {step}, each one once")
    return outcome


def tool_answer(raw: RawValue | None, call: Call) -> ToolOutcome:
    """Return the outcome of a tool call.

    Raises:
        ValueError: it cannot be read, or is that of another call.

    """
    outcome = read_payload(raw, ToolOutcome)
    if outcome.result.call_id != call.call.id:
        raise ValueError(f"it is the result of {outcome.result.call_id!r}, not of {call.call.id!r}")
    return outcome


def hook_answer(raw: RawValue | None, command: RunHooks) -> HookOutcome:
    """Return the outcome of hooks.

    Raises:
        ValueError: it cannot be read, or has no verdict on one of the calls.

    """
    outcome = read_payload(raw, HookOutcome)
    missing = {call.call.id for call in command.calls} - {checked.call_id for checked in outcome.calls}
    if missing:
        raise ValueError(f"it has no verdict on {', '.join(sorted(missing))}")
    return outcome
