"""Hooks in a run: when an activity of their own asks them, and what their verdicts change.

Rules
1. Functions and models ask their hooks in the activity of the call. Where no activity of Perdure makes the call, the
   activity `run_hooks` asks: for remote tools, agents as tools, handoffs, and a run's start and end. It also asks
   first for a function whose arguments a person or the policy must judge.
2. A verdict arrives as an event, so it is in history. A call is checked once, whatever is retried afterwards.
3. Hooks that give no verdict park the run: the calls that they guard are asked about again when it goes on.
4. For an agent without hooks every function here changes nothing.
"""

from dataclasses import replace
from typing import assert_never

from perdure.messages import Text, ToolResult
from perdure.wire.effects import CheckedCall, ModelFailure
from perdure.wire.names import HANDOFF

from . import parking
from .calls import apply_check, apply_review, open_checked_handoff
from .commands import CallModel, Command, Finish, RunHooks, Wait
from .ends import end_by_hook, without_words
from .events import HooksAnswered, HooksFailed, HooksStarted
from .state import AgentState, Call, CallState, End


def with_hooks(state: AgentState, command: Command) -> Command:
    """Return the command, or the hooks that must be asked before it."""
    hooks, step = state.spec.hooks, state.step
    if step.proposed_end is not None:
        return _ask_about_end(state, step.proposed_end)
    if step.asking_hooks == "on_end" and state.ending is None:
        return Wait()  # the end was given up for a message: the answer about it is on its way
    if not hooks:
        return command
    match command:
        case CallModel() if "on_start" in hooks and not step.start_checked:
            return _ask(state, RunHooks(point="on_start"))
        case Finish() if "on_end" in hooks and not step.end_checked:
            return _guard_end(state, command)
        case Wait() if state.parking.parked is None and not state.paused and state.ending is None:
            return _ask_about_calls(state)
        case _:
            return command


def _guard_end(state: AgentState, command: Finish) -> Command:
    """Return the question to the hooks, or an end without words that no hook has seen."""
    end = command.end
    if end.stop_reason == "handoff":
        return (
            command  # its words went through the hooks before the call; the end to check is the successor's
        )
    if end.stop_reason == "cancelled" or (end.failure is not None and not end.answers):
        # A cancelled run must end now.
        return Finish(end=without_words(state, end))
    return _ask(state, RunHooks(point="on_end", end=end))


def _ask_about_end(state: AgentState, end: End) -> Command:
    if "on_end" not in state.spec.hooks:
        return Finish(end=end)  # a redrive has changed the agent
    return _ask(state, RunHooks(point="on_end", end=end))


def _ask(state: AgentState, command: RunHooks) -> Command:
    # A run that is to end asks even while it is parked: nothing else would let it end.
    is_parked = state.ending is None and state.parking.parked is not None
    return Wait() if is_parked or state.step.asking_hooks is not None else command


def _ask_about_calls(state: AgentState) -> Command:
    if state.step.asking_hooks is not None:
        return Wait()
    # Checks before reviews: a checked call can run while results wait.
    unchecked = tuple(call for call in state.step.calls if call.state == "unchecked")
    if unchecked:
        return RunHooks(point="before_tool", calls=unchecked)
    unreviewed = tuple(call for call in state.step.calls if call.state == "unreviewed")
    return RunHooks(point="after_tool", calls=unreviewed) if unreviewed else Wait()


def start_hooks(state: AgentState, event: HooksStarted) -> AgentState:
    """Return the state while hooks are being asked."""
    next_state: dict[CallState, CallState] = {"unchecked": "checking", "unreviewed": "reviewing"}
    calls = tuple(
        replace(call, state=next_state.get(call.state, call.state)) if call.call.id in event.ids else call
        for call in state.step.calls
    )
    state = replace(state, step=replace(state.step, calls=calls, asking_hooks=event.point))
    if event.end is None:
        return state
    return replace(state, end=None, step=replace(state.step, proposed_end=event.end))


def answer_hooks(state: AgentState, event: HooksAnswered) -> AgentState:
    """Return the state after hooks answered. A late answer changes nothing."""
    if state.step.asking_hooks != event.point:
        return state
    state = replace(state, step=replace(state.step, asking_hooks=None))
    match event.point:
        case "on_start":
            state = replace(state, step=replace(state.step, start_checked=True))
            text = event.outcome.end_turn
            return state if text is None else end_by_hook(state, text)
        case "on_end":
            return _apply_end(state, event)
        case "before_tool":
            for checked in event.outcome.calls:
                state = _apply_check(state, checked)
            return state
        case "after_tool":
            for checked in event.outcome.calls:
                state = _apply_review(state, checked)
            return state
        case "before_model" | "after_model":
            return state  # asked in the activity of the model call
        case _:
            assert_never(event.point)


def _apply_end(state: AgentState, event: HooksAnswered) -> AgentState:
    end = state.step.proposed_end
    if end is None:
        return state  # a message came meanwhile, or a stop: the next end is asked about again
    # None is a legal output, so a flag tells whether the hooks have replaced it.
    if event.outcome.is_replaced:
        end = replace(end, output=event.outcome.output)
    return _accept_end(state, end)


def _accept_end(state: AgentState, end: End) -> AgentState:
    return replace(state, end=end, step=replace(state.step, end_checked=True, proposed_end=None))


def _apply_check(state: AgentState, checked: CheckedCall) -> AgentState:
    call = next((c for c in state.step.calls if c.call.id == checked.call_id and c.state == "checking"), None)
    if call is None:
        return state
    changed = apply_check(state, call, checked)
    if checked.end_turn is not None:
        state = replace(state, step=replace(state.step, ending_text=checked.end_turn))
    if call.call.name == HANDOFF and changed.state == "ready":
        return take_handoff(state, call, changed)
    return replace(state, step=replace(state.step, calls=_exchange(state.step.calls, call, changed)))


def take_handoff(state: AgentState, call: Call, allowed: Call) -> AgentState:
    """Return the state with a handoff that hooks, and a person if they asked one, have allowed."""
    done, handoff = open_checked_handoff(state, allowed)
    step = replace(state.step, handoff=handoff, calls=_exchange(state.step.calls, call, done))
    return replace(state, step=step)


def _apply_review(state: AgentState, checked: CheckedCall) -> AgentState:
    call = next(
        (c for c in state.step.calls if c.call.id == checked.call_id and c.state == "reviewing"), None
    )
    if call is None:
        return state
    step = state.step
    if checked.end_turn is not None:
        step = replace(step, ending_text=checked.end_turn)
    calls = _exchange(step.calls, call, apply_review(call, checked))
    return replace(state, step=replace(step, calls=calls))


def _exchange(calls: tuple[Call, ...], old: Call, new: Call) -> tuple[Call, ...]:
    return tuple(new if call is old else call for call in calls)


def fail_hooks(state: AgentState, event: HooksFailed) -> AgentState:
    """Return the state after hooks gave no verdict: parked, and asked again when it goes on."""
    if state.step.asking_hooks != event.point:
        return state
    waiting: dict[CallState, CallState] = {"checking": "unchecked", "reviewing": "unreviewed"}
    calls = tuple(replace(call, state=waiting.get(call.state, call.state)) for call in state.step.calls)
    state = replace(state, step=replace(state.step, calls=calls, asking_hooks=None))
    proposed = state.step.proposed_end
    if state.ending is not None:
        # A run that is to end cannot wait for its hooks to be mended, and its words stay unseen.
        return (
            withhold_unreviewed(state)
            if proposed is None
            else _accept_end(state, without_words(state, proposed))
        )
    if event.point == "on_end" and proposed is None:
        return state  # the end was given up meanwhile: nobody needs the verdict
    state = parking.fall_back_or_park(
        state, ModelFailure(kind="hook_failed", message=event.message), event.at
    )
    return state if state.end is None else _end_unchecked(state, state.end)


def _end_unchecked(state: AgentState, end: End) -> AgentState:
    """Return the state that fails because of its hooks: they are not asked again, and nothing passes them."""
    return _accept_end(withhold_unreviewed(state), without_words(state, end))


def withhold_unreviewed(state: AgentState) -> AgentState:
    """Give calls whose results no hook has seen an error instead: the run ends before they could be asked."""
    text = "The call was made, but the run ended before its result could be checked."
    calls = tuple(
        replace(call, state="done", unreviewed=None, result=_withheld(call, text))
        if call.state in ("unreviewed", "reviewing")
        else call
        for call in state.step.calls
    )
    return replace(state, step=replace(state.step, calls=calls))


def _withheld(call: Call, text: str) -> ToolResult:
    return ToolResult(call_id=call.call.id, name=call.call.name, content=[Text(text=text)], is_error=True)
