"""Pages of a transcript, by bytes: a query's answer must stay far below the payload limit."""

from collections.abc import Sequence

from perdure.messages import Message, size_bytes
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import TranscriptPage

PAGE_BYTES = 400 * 1024


def page(messages: Sequence[Message], want: TranscriptQuery) -> TranscriptPage:
    """Messages from `start`, as many as fit `PAGE_BYTES`, but at least one if there is one."""
    start = max(want.start, 0)
    stop = len(messages) if want.stop is None else min(max(want.stop, 0), len(messages))
    chosen: list[Message] = []
    room = PAGE_BYTES
    for message in messages[start:stop]:
        room -= size_bytes(message)
        if chosen and room < 0:
            break
        chosen.append(message)
    return TranscriptPage(start=start, length=len(messages), messages=chosen)
