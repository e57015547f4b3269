"""decide: what a run does next. Pure; see the rules in `state`."""

from dataclasses import dataclass

from perdure.messages import Message
from perdure.model import ToolChoice
from perdure.planning import plan_reminder
from perdure.wire.results import StopReason
from perdure.wire.tree import Amount, Grant

from .account import limits_of, spent
from .amounts import plus
from .budget import Allowance, Want, allowance, exhausted, under_way, waits_for_children, wanted
from .chain import cheaper
from .scheduler import Start
from .state import Call, End, State
from .tree import answers, lacking
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
class StartNodes:
    """Start these nodes of a swarm or graph, all at once."""

    starts: tuple[Start, ...]
    more: bool = False
    """There are more, for the next workflow task: all at once they would pass what one may carry."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Tell children what they get."""

    grants: tuple[tuple[str, Grant], ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask the parent for more."""

    want: Want


@dataclass(frozen=True, kw_only=True)
class Slide:
    """Move the model's window, so that what it sees fits."""

    start: int


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Go on with a model that the money left pays for."""

    model: int


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


@dataclass(frozen=True, kw_only=True)
class OpenTurn:
    """Let a session's next message have its turn."""


@dataclass(frozen=True, kw_only=True)
class CloseTurn:
    """The turn of a session is over."""

    end: End


Command = (
    CallModel
    | CallTools
    | StartNodes
    | Answer
    | Ask
    | Slide
    | Switch
    | Recall
    | Wait
    | Finish
    | OpenTurn
    | CloseTurn
)

_LAST_WORD = (
    "You have used up what you may do here ({reason}). Do not call tools any more. "
    "Answer now with what you have, and say what is missing."
)


def decide(state: State) -> Command:
    """The next command. While something is in flight it is `Wait`, `Recall` or something beside it."""
    if state.end is not None:
        return Recall() if state.tree.children else Finish(end=state.end)
    if state.ending is not None:
        return Recall() if state.busy else Finish(end=early_end(state, state.ending))
    return _for_children(state) or _onward(state)


def _for_children(state: State) -> Command | None:
    """What the children's needs ask of it: an answer, or a question to the run's own parent."""
    if all(child.need is None for child in state.tree.children):
        return None
    used = plus(spent(state), under_way(state))
    found = answers(state.tree, limits_of(state), used, busy=state.asking_model or state.running)
    if found.grants:
        return Answer(grants=found.grants)
    if found.need is not None and found.wish is not None:
        return Ask(want=Want(need=found.need, wish=found.wish))
    return None


def _onward(state: State) -> Command:
    if state.paused or state.parked is not None or state.asking_model:
        return Wait()
    if state.calls:
        return _calls(state)
    if state.resting:
        return Wait()
    return _ask(state)


def _calls(state: State) -> Command:
    ready = startable(state)
    if ready:
        return CallTools(calls=ready)
    unpaid = sum(call.state == "unpaid" for call in state.calls)
    one = Amount(tool_calls=1)
    if unpaid and not state.tree.asking and lacking(state.tree, limits_of(state), spent(state), one)[1]:
        return Ask(want=Want(need=one, wish=Amount(tool_calls=unpaid)))
    return Wait()


def _ask(state: State) -> Command:
    start = _window(state)
    if start > state.window_start:  # first, so that budgets reserve what will be read, and no more
        return Slide(start=start)
    if state.tree.asking or waits_for_children(state):
        return Wait()
    want = wanted(state)
    if want is not None:
        return Ask(want=want)
    over = exhausted(state)
    other = cheaper(state) if over == "cost_budget" else None
    if other is not None:
        return Switch(model=other)
    if over is not None:
        return Recall() if state.busy else Finish(end=early_end(state, state.wrap_up or over))
    if state.wrap_up is not None:
        note = _LAST_WORD.format(reason=state.wrap_up)
        return CallModel(allowance=allowance(state), tool_choice="none", note=note)
    return CallModel(allowance=allowance(state), note=_reminder(state))


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
    running = [call.stand_in or call.call.name for call in state.calls if call.state == "running"]
    tools = sum(call.state == "running" and call.kind != "agent" for call in state.calls)
    chosen: list[Call] = []
    for call in state.calls:
        if call.state != "ready":
            continue
        name = call.stand_in or call.call.name
        tool = state.spec.tool(name)
        cap = tool.concurrency if tool else None
        if call.kind != "agent" and tools >= state.spec.tool_concurrency:
            continue
        if cap is None or running.count(name) < cap:
            tools += call.kind != "agent"
            running.append(name)
            chosen.append(call)
    return tuple(chosen)


def _reminder(state: State) -> str | None:
    """The plan, for a model that does not see any more where it wrote it."""
    if not state.plan or state.planned_at >= state.window_start:
        return None
    return plan_reminder(state.plan)


def early_end(state: State, reason: StopReason) -> End:
    """An end before the model's own: with the best that was said so far, or the agent's own words for this.

    Words are no output where a type was asked for: then there is none.
    """
    if state.spec.output_schema is not None:
        return End(stop_reason=reason)
    said = partial_answer(state.messages[state.first :])
    return End(stop_reason=reason, output=said or state.spec.fallback_message or "")


def partial_answer(messages: tuple[Message, ...]) -> str:
    """The newest words of the model, or nothing."""
    said = (message.text for message in reversed(messages) if message.role == "assistant")
    return next((text for text in said if text.strip()), "")
