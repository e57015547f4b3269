"""Reading on: the rest of results that the transcript holds whole, though the model was shown less of them."""

from perdure.fitting import text_of_result
from perdure.messages import ToolCall
from perdure.texts import next_piece

from .state import AgentState


def rest_of_result(state: AgentState, call: ToolCall) -> str | None:
    """Return the next piece of the result that a call of `read_result` names, or None if it is none of the run's.

    Texts that were too long for the transcript stand in the blob store: those are read by an activity.
    """
    text = text_of_result(reversed(state.messages), str(call.arguments.get("result", "")))
    if text is None:
        return None
    offset = call.arguments.get("offset", 0)
    start = max(offset, 0) if isinstance(offset, int) else 0
    return next_piece(text.encode(errors="replace"), start, state.spec.result_preview_bytes)
