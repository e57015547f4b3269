"""Results of remote tools: JSON from an activity in any language, as content for the model."""

import json
from typing import Any

from perdure.messages import Text, ToolCall, ToolResult
from perdure.texts import first_bytes, mark_cut


def remote_result(value: Any, call: ToolCall, most_bytes: int, duration_ms: int) -> ToolResult:
    """Return the value as a tool result: a string as it is, anything else as JSON, cut to `most_bytes`."""
    text = value if isinstance(value, str) else _as_json(value)
    data = text.encode(errors="replace")
    if len(data) > most_bytes:
        # The rest is not stored: pure code reaches no blob store, and no worker of ours ran the tool.
        text = mark_cut(first_bytes(data, most_bytes), len(data), "ask for less at a time")
    else:
        text = data.decode()
    return ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)], duration_ms=duration_ms)


def _as_json(value: Any) -> str:
    """Return the value as JSON. Never raises: an exception here would fail the workflow task for ever."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_bytes_as_text)
    except (TypeError, ValueError, RecursionError):
        return f"a result that is not JSON: {type(value).__name__}"


def _bytes_as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else type(value).__name__
