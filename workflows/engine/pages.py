"""Pages of a transcript, bounded by bytes."""

from collections.abc import Sequence

from perdure.messages import Message, size_bytes
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import TranscriptPage

PAGE_BYTES = 400 * 1024
"""Bound of a page, far below the payload limit of a query's result."""


def page(messages: Sequence[Message], query: TranscriptQuery, summary: str = "") -> TranscriptPage:
    """Return the messages from `start` that fit `PAGE_BYTES`; at least one if there is one."""
    start = max(query.start, 0)
    stop = len(messages) if query.stop is None else min(max(query.stop, 0), len(messages))
    chosen: list[Message] = []
    room = PAGE_BYTES
    # A message larger than a page makes a page of its own; without it the reader would never get on.
    for message in messages[start:stop]:
        room -= size_bytes(message)
        if chosen and room < 0:
            break
        chosen.append(message)
    return TranscriptPage(
        start=start, length=len(messages), messages=chosen, summary=summary if query.summary else ""
    )
