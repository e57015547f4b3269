"""Messages written as plain text: for the summary of a conversation, and for reading back in it. Pure."""

import json

from perdure.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult
from perdure.texts import truncate_middle


def written_message(message: Message, most_part_chars: int) -> str:
    """Return the message as lines that begin with its role; each part has at most so many characters."""
    lines = (f"{message.role}: {_written_part(part, most_part_chars)}" for part in message.parts)
    return "\n".join(line for line in lines if not line.endswith(": "))


def _written_part(part: Part, most: int) -> str:
    match part:
        case Text():
            text = part.text
        case ToolCall():
            text = f"calls {part.name}({json.dumps(part.arguments, ensure_ascii=False)})"
        case ToolResult():
            text = f"{part.name} {'failed' if part.is_error else 'returned'}: {part.text}"
        case Image() | Document():
            text = f"[{part.kind}]"
        case _:
            text = ""  # reasoning is for the model that wrote it
    return truncate_middle(text, most)
