"""decide: what a run does next. Pure; see the rules in `state`."""

from dataclasses import dataclass

from perdure.messages import Message
from perdure.model import ToolChoice
from perdure.wire import StopReason

from .budget import Allowance, allowance, exhausted
from .state import Call, End, State
from .window import overfull, slide


@dataclass(frozen=True, kw_only=True)
class CallModel:
    """Ask the model."""

    allowance: Allowance
    tool_choice: ToolChoice = "auto"
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallTools:
    """Start these calls, all at once."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, kw_only=True)
class Slide:
    """Move the model's window, so that what it sees fits."""

    start: int


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Call back what is in flight: the run is to end."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do until something happens."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The run is over."""

    end: End


Command = CallModel | CallTools | Slide | Recall | Wait | Finish

_LAST_WORD = (
    "You have used up what you may do here ({reason}). Do not call tools any more. "
    "Answer now with what you have, and say what is missing."
)


def decide(state: State) -> Command:
    """The next command. While something is in flight it is `Wait`, `Recall` or more `CallTools`."""
    if state.end is not None:
        return Finish(end=state.end)
    if state.ending is not None:
        return Recall() if state.busy else Finish(end=early_end(state, state.ending))
    if state.paused or state.parked is not None or state.asking_model:
        return Wait()
    if state.calls:
        ready = startable(state)
        return CallTools(calls=ready) if ready else Wait()
    return _ask(state)


def _ask(state: State) -> Command:
    start = _window(state)
    if start > state.window_start:  # first, so that budgets reserve what will be read, and no more
        return Slide(start=start)
    over = exhausted(state)
    if over is not None:
        return Finish(end=early_end(state, state.wrap_up or over))
    if state.wrap_up is not None:
        note = _LAST_WORD.format(reason=state.wrap_up)
        return CallModel(allowance=allowance(state), tool_choice="none", note=note)
    return CallModel(allowance=allowance(state))


def _window(state: State) -> int:
    window = state.spec.context
    visible = state.pinned + len(state.messages) - state.window_start
    if not overfull(window, visible, state.context_tokens):
        return state.window_start
    most = None if window.messages is None else max(2, int(window.messages * window.keep))
    tokens = None if window.tokens is None else int(window.tokens * window.keep)
    return slide(state.messages, state.window_start, most=most, tokens=tokens)


def startable(state: State) -> tuple[Call, ...]:
    """The ready calls that both caps, the run's and each tool's, let start now; in order."""
    running = [call.call.name for call in state.calls if call.state == "running"]
    chosen: list[Call] = []
    for call in state.calls:
        if call.state != "ready":
            continue
        if len(running) >= state.spec.tool_concurrency:
            break
        tool = state.spec.tool(call.call.name)
        cap = tool.concurrency if tool else None
        if cap is None or running.count(call.call.name) < cap:
            running.append(call.call.name)
            chosen.append(call)
    return tuple(chosen)


def early_end(state: State, reason: StopReason) -> End:
    """An end before the model's own: with the best that was said so far.

    Words are no output where a type was asked for: then there is none.
    """
    untyped = state.spec.output_schema is None
    return End(stop_reason=reason, output=partial_answer(state.messages) if untyped else None)


def partial_answer(messages: tuple[Message, ...]) -> str:
    """The newest words of the model, or nothing."""
    said = (message.text for message in reversed(messages) if message.role == "assistant")
    return next((text for text in said if text.strip()), "")
