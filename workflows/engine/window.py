"""Context strategies: the messages that the model sees, never a tool call without its result.

A strategy is a function from the state to a move, registered by the kind of its settings. A move that needs an
effect, such as a summary, names it; `decide` asks for it, and falls back to plain sliding where limits forbid it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from perdure.context import SlidingWindow, Summary
from perdure.messages import Message, estimated_tokens

from .input_tokens import visible_tokens
from .state import AgentState, Transcript


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The window stays as it is."""


@dataclass(frozen=True, kw_only=True)
class MoveTo:
    """The window moves to `start`."""

    start: int


@dataclass(frozen=True, kw_only=True)
class SummarizeTo:
    """A model summarizes the messages from `start` to `stop`, then the window moves to `stop`."""

    start: int
    stop: int


WindowMove = Keep | MoveTo | SummarizeTo


def choose_window(state: AgentState) -> WindowMove:
    """Return what the agent's context strategy does before the next model call."""
    return _STRATEGIES[state.spec.context.kind](state)


def _choose_slide(state: AgentState) -> Keep | MoveTo:
    """Return where the window is to start, so that what the model sees fits both bounds."""
    window, transcript = state.spec.context, state.transcript
    visible = transcript.pinned_messages + len(transcript.messages) - transcript.window_start
    if not _is_overfull(window, visible, transcript.context_tokens):
        return Keep()
    most = None if window.messages is None else max(2, int(window.messages * window.keep))
    tokens = None if window.tokens is None else int(window.tokens * window.keep)
    start = slide(transcript.messages, transcript.window_start, most=most, tokens=tokens)
    return MoveTo(start=start) if start > transcript.window_start else Keep()


def _choose_summary(state: AgentState) -> WindowMove:
    move = _choose_slide(state)
    start = max(state.transcript.window_start, 1)  # the task stays visible, so no summary covers it
    if isinstance(move, Keep) or move.start <= start:
        return move
    return SummarizeTo(start=start, stop=move.start)


_STRATEGIES: dict[str, Callable[[AgentState], WindowMove]] = {
    "sliding_window": _choose_slide,
    "summary": _choose_summary,
}
"""Strategies by their kind.

A new one is a class in `perdure.context`, a member of the union `ContextStrategy`, and a line here. With an effect of
its own it also needs a move, a command, an event, and their cases in `decide`, `fold` and the loop.
"""


def move_window(state: AgentState, start: int) -> AgentState:
    """Return the state with the window's new start, and less context by what has left it."""
    transcript = state.transcript
    moved = replace(state, transcript=replace(transcript, window_start=start))
    # Both are upper bounds. A difference of the two would be none: our estimate of what left may be too large.
    remaining = min(transcript.context_tokens, visible_tokens(moved))
    return replace(moved, transcript=replace(moved.transcript, context_tokens=remaining))


def half_window_start(transcript: Transcript) -> int:
    """Return the start of a window with half the visible messages."""
    visible = len(transcript.messages) - max(transcript.window_start, 1)
    return slide(transcript.messages, transcript.window_start, most=max(2, visible // 2), tokens=None)


def _is_overfull(window: SlidingWindow | Summary, visible: int, tokens: int) -> bool:
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
