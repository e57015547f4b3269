"""Progress of a step's calls: their start, their results, and the ends of child runs."""

from dataclasses import replace

from perdure.fitting import must_cut
from perdure.messages import Message, ToolResult
from perdure.wire.ids import child_key, child_run_id

from . import tree
from .account import limits_of, spent
from .agent_calls import late_answer, receipt, with_left_undone
from .calls import admit_paid_calls, apply_result, asks_hooks, with_arguments, with_result
from .events import (
    CallReturned,
    CallsStarted,
    ChildEnded,
)
from .family import book_outcome
from .hooks import withhold_unreviewed
from .input_tokens import newest_results, result_bound
from .leftovers import add_left_below
from .state import AgentState, Call
from .step import (
    close_step,
    exchange_call,
    offer_rest,
    receive,
    set_result,
    text_result,
    unrun_result,
    with_calls,
)


def mark_running(state: AgentState, event: CallsStarted) -> AgentState:
    """Return the state once these calls have started; agents among them become children."""
    started = [call for call in state.step.calls if call.call.id in event.ids]
    state = with_calls(
        state,
        tuple(replace(call, state="running") if call in started else call for call in state.step.calls),
    )
    agents = [call for call in started if call.kind == "agent"]
    return _add_children(state, agents) if agents else state


def _add_children(state: AgentState, calls: list[Call]) -> AgentState:
    """Give each child its lease. A call whose answer comes later gets its receipt at once."""
    waiting = [call for call in state.step.calls if call.kind == "agent" and call.state == "ready"]
    # The model goes on while such children run, and needs a part of the budget for itself.
    later = any(tool.kind == "agent" and tool.collect == "completion" for tool in state.spec.tools)
    starting = len(calls) + len(waiting)
    lease = tree.lease_for(state.tree, limits_of(state), spent(state), starting, alone=not later)
    for call in calls:
        tool = state.spec.tool(call.call.name)
        assert tool is not None, "only calls of known tools are started"
        assert tool.agent is not None, "a tool of kind agent names one"
        key = child_key(tool.agent, call.call.id)
        child = tree.Child(key=key, name=tool.agent, run_id=child_run_id(state.id, key), lease=lease)
        state = replace(state, tree=tree.add_child(state.tree, child))
        if tool.collect == "completion":
            state = set_result(state, text_result(call.call, receipt(key), is_error=False))
    return close_step(state)


def fold_child_end(state: AgentState, event: ChildEnded) -> AgentState:
    """Book what a child used, and take its answer. A child that was given up is not counted twice."""
    child = state.tree.child(event.key)
    if child is None:
        return state  # given up, and booked then
    outcome = tree.outcome_of(child, event.outcome)
    state = book_outcome(state, outcome)
    state = admit_paid_calls(replace(state, tree=tree.remove_child(state.tree, event.key)))
    if event.result is None:
        return close_step(state)
    # The last report of a cancelled child says more than its end.
    result = event.result if outcome is event.outcome else with_left_undone(event.result, outcome)
    state = add_left_below(state, event.key, outcome)
    call = next((c for c in state.step.calls if c.call.id == result.call_id and c.state == "running"), None)
    if call is not None:
        return close_step(_finish_call(state, call, with_result((call,), result)[0]))
    parts = [*late_answer(event.key, result)]
    message = Message(role="user", parts=parts, answer_of=event.key)
    # Late answers, and the results of the step that they come to, are shown together.
    together = [*newest_results(state), *(m for m in state.inbox.messages if m.answer_of), message]
    state = offer_rest(state, cut=result.spilled is not None or must_cut(together, result_bound(state)))
    # A call that waited for the child to give something back may be refused by now.
    return close_step(receive(state, message))


def fold_result(state: AgentState, event: CallReturned) -> AgentState:
    """Return the state after a call returned: with its result, ready for the tool's stand-in, or asking."""
    result = event.result
    call = next((call for call in state.step.calls if call.call.id == result.call_id), None)
    # The call was given up, or belongs to an earlier step: a result that comes late changes nothing.
    if call is None or call.state != "running":
        return set_result(state, result)
    # A run that ends starts no stand-in and asks nobody.
    if state.ending is not None or state.end is not None:
        return _finish_call(state, call, with_result((call,), _late_result(call, event))[0])
    if event.arguments is not None:
        tool = state.spec.tool(call.call.name)
        changed = replace(call, call=with_arguments(tool, call.call, dict(event.arguments)))
        state, call = exchange_call(state, call, changed), changed
    if event.ask is not None:
        # The tool was not called. It will be, without asking the hooks again, once a person allows it.
        records = (*call.records, *result.hooks)
        asking = replace(call, state="asking", checked=True, ask_reason=event.ask, records=records)
        return exchange_call(state, call, asking)
    if event.end_turn is not None:
        # The turn ends, so no stand-in is called.
        state = replace(state, step=replace(state.step, ending_text=event.end_turn))
        return _finish_call(state, call, with_result((call,), result)[0])
    changed = apply_result(state, call, result)
    if changed.state == "ready" and changed.stand_in is not None:
        # A stand-in counts against its own limit per tool, but is no further call of the model.
        calls_made = state.ledger.per_tool.get(changed.stand_in, 0) + 1
        per_tool = {**state.ledger.per_tool, changed.stand_in: calls_made}
        state = replace(state, ledger=replace(state.ledger, per_tool=per_tool))
    return _finish_call(state, call, changed)


def _finish_call(state: AgentState, call: Call, changed: Call) -> AgentState:
    """Return the state with the changed call; hooks see the result of a call that no activity of ours made."""
    stand_in = state.spec.tool(call.stand_in) if call.stand_in else None
    kind = stand_in.kind if stand_in else call.kind
    if changed.state == "done" and asks_hooks(state, kind, "after_tool"):
        changed = replace(changed, state="unreviewed", unreviewed=changed.result, result=None)
    state = exchange_call(state, call, changed)
    # A run that ends asks no more. The next turn of a session must not read what no hook has seen.
    is_over = state.ending is not None or state.end is not None
    return withhold_unreviewed(state) if is_over else state


def _late_result(call: Call, event: CallReturned) -> ToolResult:
    """Return the result of a call that returned while the run ends: no person is asked any more."""
    if event.ask is not None:
        return unrun_result(call.call, "the run was ended")
    return event.result.model_copy(update={"name": call.call.name})
