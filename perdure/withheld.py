"""Messages that a provider's filter has refused: later calls have words in their place. Pure.

The transcript stays as it is. The reply that the filter stopped says so in its record (`ReplyMeta.withheld`); what it
was to answer, back to the reply before it, is what the filter may have meant. Sent again, it would be refused again,
and with it each later message of the conversation. Each further refusal in a row takes in twice as much.
"""

from collections.abc import Collection, Sequence
from typing import Final

from perdure.messages import Message, Part, Text, ToolCall, ToolResult

_REFUSED: Final = "[A message that the provider's filter has refused. It is not shown again.]"
_UNSENT: Final = "[A message that could not be sent: it was too long, or was refused. It is not shown again.]"
_STOPPED: Final = "[An answer that the provider's filter has stopped. It is not shown again.]"


def without_withheld(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with words in place of those that a filter has refused."""
    if not any(_is_withheld(message) for message in messages):
        return tuple(messages)
    shown: list[Message] = []
    answered = [0]  # positions behind the replies that stand
    in_a_row = 0
    for message in messages:
        if not _is_withheld(message):
            shown.append(message)
            if message.role == "assistant":
                answered.append(len(shown))
                in_a_row = 0
            continue
        # Refused once more, without what was new: what the filter means is further back.
        begin = answered[-min(1 << in_a_row, len(answered))]
        in_a_row += 1
        shown[begin:] = [_in_words(each) for each in shown[begin:]]
        shown.append(_in_words(message))
    return tuple(shown)


def _is_withheld(message: Message) -> bool:
    return message.meta is not None and message.meta.withheld


def without_unsent(
    messages: Sequence[Message], unsent: Collection[int], start: int = 0
) -> tuple[Message, ...]:
    """Return the messages with words in place of those with these indexes; the first message has the index `start`."""
    return tuple(
        _with_words(message, _UNSENT) if index in unsent else message
        for index, message in enumerate(messages, start)
    )


def _in_words(message: Message) -> Message:
    return _with_words(message, _STOPPED if message.role == "assistant" else _REFUSED)


def _with_words(message: Message, words: str) -> Message:
    """Return the message with words as its content. Calls and results keep their ids: they belong together."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolCall):
            parts.append(part.model_copy(update={"arguments": {}, "problem": None}))
        elif isinstance(part, ToolResult):
            parts.append(part.model_copy(update={"content": [Text(text=words)], "spilled": None}))
    if not any(isinstance(part, ToolResult) for part in parts):
        parts.insert(0, Text(text=words))
    # Not a copy: it would take the counts of the whole message along.
    return Message(role=message.role, parts=parts, meta=message.meta, answer_of=message.answer_of)
