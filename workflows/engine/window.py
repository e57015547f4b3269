"""The sliding window: which messages the model sees, never a tool call without its result."""

from collections.abc import Sequence

from perdure.context import SlidingWindow
from perdure.messages import Message, estimated_tokens


def overfull(window: SlidingWindow, visible: int, tokens: int) -> bool:
    """Whether what the model would see passes one of the window's bounds."""
    too_many = window.messages is not None and visible > window.messages
    too_long = window.tokens is not None and tokens > window.tokens
    return too_many or too_long


def slide(messages: Sequence[Message], start: int, *, most: int | None, tokens: int | None) -> int:
    """The smallest start, beyond the present one, that keeps at most so many messages and tokens.

    The first message always stays visible and is not counted. The result is `start` itself when
    nothing more can be left out: the newest exchange is never given up.
    """
    keep, kept_tokens = len(messages), 0
    for index in range(len(messages) - 1, max(start, 1) - 1, -1):
        kept_tokens += estimated_tokens(messages[index])
        if (most is not None and len(messages) - index > most) or (
            tokens is not None and kept_tokens > tokens
        ):
            break
        keep = index
    keep = _whole(messages, keep)
    return keep if keep > max(start, 1) else start


def _whole(messages: Sequence[Message], index: int) -> int:
    """The nearest message from `index` on that may open a window, else the last one that may."""
    for candidate in range(index, len(messages)):
        if messages[candidate].role != "tool":
            return candidate
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role != "tool"), 0)
