"""Context strategies: the messages that the model sees, never a tool call without its result.

Rules
1. The model always sees the request that it works on: the message with which the run, the turn or the visit began.
   In the window it stands where it was sent. Beyond it, it is pinned before the window.
2. No message leaves the window before a model has read it. Calls stay together with their results.
3. The first message that the model sees is a person's: providers refuse a conversation that begins otherwise.
4. The pinned request changes only when the window moves: until then the provider's prompt cache holds.

A strategy is a function from the state to a move, registered by the kind of its settings. A move that needs an
effect, such as a summary, names it; `decide` asks for it, and falls back to plain sliding where limits forbid it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from perdure.fitting import fit_results, window_tokens
from perdure.messages import estimated_tokens

from .input_tokens import result_bound, unmoved_tokens, visible_tokens
from .state import AgentState


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The window stays as it is."""


@dataclass(frozen=True, kw_only=True)
class MoveTo:
    """The window moves to `start`."""

    start: int


@dataclass(frozen=True, kw_only=True)
class SummarizeTo:
    """A model summarizes the messages that a move to `stop` leaves out, then the window moves there."""

    stop: int


WindowMove = Keep | MoveTo | SummarizeTo


def choose_window(state: AgentState) -> WindowMove:
    """Return what the agent's context strategy does before the next model call."""
    return _STRATEGIES[state.spec.context.kind](state)


def _choose_slide(state: AgentState) -> Keep | MoveTo:
    """Return where the window is to start, so that what the model sees fits both bounds."""
    window, transcript = state.spec.context, state.transcript
    if state.step.cut_to > transcript.window_start:
        return MoveTo(start=state.step.cut_to)
    bound = window_tokens(window, state.spec.models[state.chain.model].config)
    visible = len(transcript.messages) - transcript.window_start + (transcript.pinned is not None)
    too_many = window.messages is not None and visible > window.messages
    too_long = bound is not None and transcript.context_tokens > bound
    if not (too_many or too_long):
        return Keep()
    most = None if window.messages is None else max(2, int(window.messages * window.keep))
    tokens = None
    if bound is not None:
        tokens = int(max(bound - unmoved_tokens(state), 0) * window.keep)
    start = slide(state, most=most, tokens=tokens)
    return MoveTo(start=start) if start > transcript.window_start else Keep()


def _choose_summary(state: AgentState) -> WindowMove:
    move = _choose_slide(state)
    if isinstance(move, Keep) or not _leaves_something(state, move.start):
        return move
    return SummarizeTo(stop=move.start)


_STRATEGIES: dict[str, Callable[[AgentState], WindowMove]] = {
    "sliding_window": _choose_slide,
    "summary": _choose_summary,
}
"""Strategies by their kind.

A new one is a class in `perdure.context`, a member of the union `ContextStrategy`, and a line here. With an effect of
its own it also needs a move, a command, an event, and their cases in `decide`, `fold` and the loop.
"""


def request_before(state: AgentState, start: int) -> int | None:
    """Return the index of the request that is pinned before a window from `start` on, or None."""
    return state.first_message if start > state.first_message else None


def move_window(state: AgentState, start: int) -> AgentState:
    """Return the state with the window's new start, and less context by what has left it."""
    pinned = request_before(state, start)
    moved = replace(state, transcript=replace(state.transcript, window_start=start, pinned=pinned))
    # Both are upper bounds. A difference of the two would be none: our estimate of what left may be too large.
    remaining = min(state.transcript.context_tokens, visible_tokens(moved))
    return replace(moved, transcript=replace(moved.transcript, context_tokens=remaining))


def half_window_start(state: AgentState) -> int:
    """Return the start of a window with half the visible messages."""
    visible = len(state.messages) - state.transcript.window_start
    return slide(state, most=max(2, visible // 2), tokens=None)


def _leaves_something(state: AgentState, start: int) -> bool:
    """Return whether a move to `start` leaves out more than a request that is pinned from then on."""
    pinned = request_before(state, start)
    old = state.transcript.pinned
    leaving = {*range(state.transcript.window_start, start), *([] if old is None else [old])}
    return bool(leaving - {pinned})


def slide(state: AgentState, *, most: int | None, tokens: int | None) -> int:
    """Return the smallest start, from the present one on, that keeps at most so many messages and tokens.

    The tokens of a pinned request count, and it is no message of `most`. The newest exchange is never given up, so
    it alone may exceed both.
    """
    messages, start, request = state.transcript.shown, state.transcript.window_start, state.first_message
    newest = _newest_exchange(state)
    keep, kept_tokens = newest, 0
    shown = messages[start:] if tokens is None else fit_results(messages[start:], result_bound(state))
    pinned_tokens = 0 if tokens is None else estimated_tokens(messages[request])
    for index in range(len(messages) - 1, start - 1, -1):
        if tokens is not None:
            kept_tokens += estimated_tokens(shown[index - start])
        too_many = most is not None and len(messages) - index > most
        too_long = tokens is not None and kept_tokens + (pinned_tokens if index > request else 0) > tokens
        if index < newest:
            if too_many or too_long:
                break
            keep = index
    opening = (i for i in range(keep, min(newest + 1, len(messages))) if _may_open(state, i))
    return max(next(opening, start), start)


def _may_open(state: AgentState, index: int) -> bool:
    """Return whether a window may start at the message: see rules 1 to 3."""
    # Before the request nothing is pinned, so the message itself must be a person's.
    role = state.messages[index].role
    return role == "user" if index <= state.first_message else role != "tool"


def _newest_exchange(state: AgentState) -> int:
    """Return the index from which on messages stay visible: those that no model has read, and their calls."""
    messages, request = state.messages, state.first_message
    read = next((i for i in reversed(range(len(messages))) if messages[i].role == "assistant"), -1)
    if read < request:  # results of an earlier turn belong to that turn, and may leave
        unread = (i for i in range(read + 1, len(messages)) if messages[i].role != "tool")
        return next(unread, len(messages))
    follows = read + 1 < len(messages) and not messages[read].tool_calls
    return read + 1 if follows else read
