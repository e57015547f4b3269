"""`decide` of an agent: the next command of its run. Teams decide in `team`; the rules stand in `state`."""

from perdure.planning import plan_reminder
from perdure.wire.names import FINAL_ANSWER
from perdure.wire.results import StopReason
from perdure.wire.tree import BudgetRequest

from .account import limits_of, room, spent
from .amounts import calls_of, missing, total
from .budget import allowance, budget_request, exhausted_limit, pending_amount, waits_for_children
from .chain import cheaper_model
from .commands import (
    CallModel,
    CallTools,
    CancelPending,
    Command,
    Finish,
    MoveWindow,
    RequestBudget,
    SwitchModel,
    Wait,
)
from .ends import early_end
from .family import command_for_children
from .state import AgentState, Call
from .summary import command_for_summary
from .tree import shortage
from .window import Keep, MoveTo, SummarizeTo, choose_window

_EMPTY = "Your last reply was empty. Give your answer in words now, or call a tool."
_LAST_CALL = (
    "You have used up what you may do here ({reason}). Do not call tools any more. "
    "Answer now with what you have, and say what is missing."
)
_LAST_TYPED_CALL = (
    "You have used up what you may do here ({reason}). Call no other tool any more. "
    f"Call {FINAL_ANSWER!r} now, with what you have."
)


def decide(state: AgentState) -> Command:
    """Return the next command. While something is pending, it is `Wait`, `CancelPending` or something beside it."""
    # Children that still run have leases: they report what they used before the run ends.
    if state.end is not None:
        return CancelPending() if state.tree.children or state.runs_tools else Finish(end=state.end)
    # Asked again once nothing is pending or the grace is over: then the run ends.
    if state.ending is not None:
        return CancelPending() if state.is_busy else Finish(end=early_end(state, state.ending))
    pending = pending_amount(state)
    # Children first, even in a paused run: a child that waits for budget cannot finish what it has begun.
    return command_for_children(state, busy=state.works_itself, pending=pending) or _own_command(state)


def _own_command(state: AgentState) -> Command:
    if state.paused or state.parking.parked is not None or state.step.asking_model:
        return Wait()
    if state.step.calls:
        return _command_for_calls(state)
    if state.step.resting:
        return Wait()
    return _command_for_model(state)


def _command_for_calls(state: AgentState) -> Command:
    ready = startable(state)
    if ready:
        return CallTools(calls=ready)
    unpaid = [calls_of(call.call.name) for call in state.step.calls if call.state == "unpaid"]
    # One request at a time: the answer changes how much is missing.
    if not unpaid or state.tree.lease.is_asking:
        return Wait()
    short, lender_could = shortage(state.tree, limits_of(state), spent(state), unpaid[0])
    if short is None or not lender_could:
        return Wait()
    preferred = missing(total(unpaid), room(state)) or short
    return RequestBudget(request=BudgetRequest(minimum=short, preferred=preferred))


def _command_for_model(state: AgentState) -> Command:
    # The window moves first, so that budgets reserve what will be read, and no more.
    match choose_window(state):
        case MoveTo(start=start):
            return MoveWindow(start=start)
        case SummarizeTo() as move:
            return command_for_summary(state, move)
        case Keep():
            return _command_for_step(state)


def _command_for_step(state: AgentState) -> Command:
    if state.tree.lease.is_asking or waits_for_children(state):
        return Wait()
    request = budget_request(state)
    if request is not None:
        return RequestBudget(request=request)
    limit = exhausted_limit(state)
    # A cheaper model helps only against the budget in money.
    cheaper = cheaper_model(state) if limit == "cost_budget" else None
    if cheaper is not None:
        return SwitchModel(model=cheaper)
    if state.tree.children and (limit or state.step.wrap_up):
        return Wait()  # no limit but that of time ends runs below: the last call reads their answers
    if limit is not None:
        reason = state.step.wrap_up or limit
        return CancelPending() if state.is_busy else Finish(end=early_end(state, reason))
    if state.step.wrap_up is not None:
        return _last_call(state, state.step.wrap_up)
    return CallModel(allowance=allowance(state), note=_reminder_note(state))


def _last_call(state: AgentState, reason: StopReason) -> CallModel:
    """Return the model call that ends a run at a limit: for words, or for an output of the agent's type."""
    if state.spec.output_schema is None:
        note = _LAST_CALL.format(reason=reason)
        return CallModel(allowance=allowance(state), tool_choice="none", note=note)
    note = _LAST_TYPED_CALL.format(reason=reason)
    return CallModel(allowance=allowance(state), tool_choice="required", note=note)


def startable(state: AgentState) -> tuple[Call, ...]:
    """Return the ready calls that both caps, the run's and each tool's, let start now, in order."""
    running = [call.stand_in or call.call.name for call in state.step.calls if call.state == "running"]
    tools = sum(call.state == "running" and call.kind != "agent" for call in state.step.calls)
    chosen: list[Call] = []
    for call in state.step.calls:
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


def _reminder_note(state: AgentState) -> str | None:
    """Return a word about the model's empty reply; or the plan, if the message in which it wrote it is out of sight."""
    if state.step.empty_replies:
        return _EMPTY
    transcript = state.transcript
    if not transcript.plan or transcript.planned_at >= transcript.window_start:
        return None
    return plan_reminder(transcript.plan)
