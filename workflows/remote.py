"""Results of remote tools: JSON from an activity in any language, made into content. Pure."""

import json
from typing import Any

from perdure.messages import Text, ToolCall, ToolResult


def remote_result(value: Any, call: ToolCall, most_bytes: int, duration_ms: int) -> ToolResult:
    """A string as it is, anything else as JSON; cut when it is too long for the model."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    data = text.encode()
    if len(data) > most_bytes:
        shown = data[:most_bytes].decode(errors="ignore")
        text = f"{shown}\n[cut here: {len(data)} bytes in all; ask for less at a time]"
    return ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)], duration_ms=duration_ms)
