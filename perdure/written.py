"""Messages written as plain text: for the summary of a conversation, and for reading back in it. Pure."""

import json

from perdure.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult
from perdure.texts import truncate_middle


def written_message(message: Message, most_part_chars: int) -> str:
    """Return the message as lines that begin with its role; each part has at most so many characters."""
    texts = (_written_part(part, most_part_chars) for part in message.parts)
    return "\n".join(f"{message.role}: {text}" for text in texts if text)


def _written_part(part: Part, most: int) -> str:
    match part:
        case Text():
            text = part.text
        case ToolCall():
            text = f"calls {part.name}({json.dumps(part.arguments, ensure_ascii=False)})"
        case ToolResult():
            media = [f"[{piece.kind}]" for piece in part.content if not isinstance(piece, Text)]
            content = " ".join([*([part.text] if part.text else []), *media]) or "(nothing)"
            text = f"{part.name} {'failed' if part.is_error else 'returned'}: {content}"
        case Image() | Document():
            text = f"[{part.kind}]"
        case _:
            text = ""  # reasoning is for the model that wrote it
    return truncate_middle(text, most)
