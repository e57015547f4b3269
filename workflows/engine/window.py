"""Sliding window: the messages that the model sees, never a tool call without its result. Pure."""

from collections.abc import Sequence

from perdure.context import SlidingWindow
from perdure.messages import Message, estimated_tokens

from .state import AgentState, Transcript


def next_window_start(state: AgentState) -> int:
    """Return where the window is to start, so that what the model sees fits the agent's context strategy."""
    window, transcript = state.spec.context, state.transcript
    visible = transcript.pinned_messages + len(transcript.messages) - transcript.window_start
    if not _is_overfull(window, visible, transcript.context_tokens):
        return transcript.window_start
    most = None if window.messages is None else max(2, int(window.messages * window.keep))
    tokens = None if window.tokens is None else int(window.tokens * window.keep)
    return slide(transcript.messages, transcript.window_start, most=most, tokens=tokens)


def half_window_start(transcript: Transcript) -> int:
    """Return the start of a window with half the visible messages."""
    visible = len(transcript.messages) - max(transcript.window_start, 1)
    return slide(transcript.messages, transcript.window_start, most=max(2, visible // 2), tokens=None)


def _is_overfull(window: SlidingWindow, visible: int, tokens: int) -> bool:
    too_many = window.messages is not None and visible > window.messages
    too_long = window.tokens is not None and tokens > window.tokens
    return too_many or too_long


def slide(messages: Sequence[Message], start: int, *, most: int | None, tokens: int | None) -> int:
    """Return the smallest start, beyond the present one, that keeps at most so many messages and tokens.

    The first message always stays visible and is not counted. The result is `start` itself when nothing more can
    be left out: the newest exchange is never given up.
    """
    keep, kept_tokens = len(messages), 0
    for index in range(len(messages) - 1, max(start, 1) - 1, -1):
        kept_tokens += estimated_tokens(messages[index])
        if (most is not None and len(messages) - index > most) or (
            tokens is not None and kept_tokens > tokens
        ):
            break
        keep = index
    keep = _first_opening(messages, keep)
    return keep if keep > max(start, 1) else start


def _first_opening(messages: Sequence[Message], index: int) -> int:
    """Return the nearest message from `index` on that may open a window, else the last one that may."""
    # A tool message without the call before it is refused by every provider.
    for candidate in range(index, len(messages)):
        if messages[candidate].role != "tool":
            return candidate
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role != "tool"), 0)
