"""`fold` of an agent: the next state of its run after an event. Teams fold in `team`; the rules stand in `state`."""

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from perdure.fitting import fit_results
from perdure.limits import Limits
from perdure.messages import Message, ToolCall, ToolResult
from perdure.wire.names import HANDOFF
from perdure.wire.requests import RunRequest
from perdure.wire.spec import AgentSpec
from perdure.wire.uncertain import mark_uncertain

from . import hooks, parking, tree
from .approvals import digest_of, record_of, tool_of
from .budget import exhausted_limit, unheard_usage
from .calls import admit_paid_calls, with_arguments
from .chain import use_model
from .clocks import clock_of, counted_deadline, waited_words
from .ends import is_chosen_by_model
from .events import (
    AnswerRelayed,
    ApprovalRelayed,
    ApprovalResolved,
    BudgetGranted,
    BudgetRequested,
    CallReturned,
    CallsStarted,
    ChildEnded,
    ChildGranted,
    ChildReported,
    EndRequested,
    Event,
    GraceExpired,
    HooksAnswered,
    HooksFailed,
    HooksStarted,
    IdleChecked,
    MessageSent,
    ModelFailed,
    ModelSwitched,
    NodesStarted,
    ParentInformed,
    Paused,
    PeopleAnswered,
    PeopleAwaited,
    Redriven,
    Replied,
    Resumed,
    RetryDue,
    Said,
    StepBegan,
    Summarized,
    SummaryBegan,
    TurnBegan,
    TurnEnded,
    TurnExtended,
    TurnInterrupted,
    Upgraded,
    WindowMoved,
)
from .family import book, book_outcome, ending_reason, fold_tree_event, unheard_outcome
from .input_tokens import fixed_tokens, result_bound
from .leftovers import add_left_below
from .questions import answer_parts, has_question
from .reply import begin_step, fold_model_failure, fold_reply
from .results import fold_child_end, fold_result, mark_running
from .state import AgentState, Origin
from .step import (
    append,
    append_unread,
    close_step,
    exchange_call,
    receive,
    set_result,
    text_result,
    unrun_result,
)
from .summary import begin_summary, fold_summary
from .transcript import Transcript
from .window import move_window

MOST_SEEN_IDS = 256
"""Message ids that are remembered, against a message that comes twice."""


def initial(request: RunRequest, spec: AgentSpec, now: datetime, origin: Origin | None = None) -> AgentState:
    """Return the state of a run that has just been given its agent."""
    origin = origin or Origin()
    history = origin.child.history if origin.child else []
    state = append(empty_state(request, spec, now, origin), *history)
    unread = origin.child.unread if origin.child else []
    state = append_unread(state, Message.user(request.prompt), *unread)
    # What an earlier run read in part, this one can read on.
    handed = origin.child is not None and origin.child.reads_results
    is_cut = bool(history) and fit_results(history, result_bound(state)) != tuple(history)
    spilled = (
        handed or is_cut or any(result.spilled for message in history for result in message.tool_results)
    )
    return replace(state, transcript=replace(state.transcript, own_start=len(history), spilled=spilled))


def empty_state(request: RunRequest, spec: AgentSpec, now: datetime, origin: Origin) -> AgentState:
    """Return the state before any message."""
    limits: Limits = spec.limits.tightened_by(request.limits)
    # The model reads, and the budget pays for, more than the messages.
    fixed = fixed_tokens(spec, has_peers=origin.child is not None and bool(origin.child.peers))
    return AgentState(
        request=request,
        spec=spec,
        limits=limits,
        started_at=now,
        deadline_at=counted_deadline(spec, limits, now, origin.child),
        clock=clock_of(spec, limits, now, origin.child),
        transcript=Transcript(context_tokens=fixed),
        id=origin.id,
        members=origin.members,
        tree=tree.tree_of(origin.child),
    )


def fold(state: AgentState, event: Event) -> AgentState:  # noqa: C901 - one case an event
    """Return the state after the event."""
    match event:
        case StepBegan():
            return begin_step(state, event)
        case Replied():
            return fold_reply(state, event)
        case ModelFailed():
            return fold_model_failure(state, event)
        case CallsStarted():
            return mark_running(state, event)
        case CallReturned():
            return close_step(fold_result(state, event))
        case HooksStarted():
            return hooks.start_hooks(state, event)
        case HooksAnswered():
            return close_step(hooks.answer_hooks(state, event))
        case HooksFailed():
            return close_step(hooks.fail_hooks(state, event))
        case MessageSent():
            return _fold_message(state, event)
        case ApprovalResolved():
            return close_step(_resolve_approval(state, event))
        case Paused():
            return replace(state, paused=True)
        case Resumed():
            return parking.resume(state)
        case RetryDue():
            return parking.retry(state, event.at)
        case Redriven():
            return parking.redrive(state, event)
        case EndRequested():
            return _begin_end(state, event)
        case GraceExpired():
            return _give_up_pending(state)
        case WindowMoved():
            return move_window(state, event.start)
        case SummaryBegan():
            return begin_summary(state, event)
        case Summarized():
            return fold_summary(state, event)
        case ModelSwitched():
            return use_model(state, event.model)
        case ChildEnded():
            return fold_child_end(state, event)
        case ChildReported() | BudgetGranted():
            # Either may free what an unpaid call waits for.
            return close_step(admit_paid_calls(fold_tree_event(state, event)))
        case ChildGranted() | BudgetRequested() | ParentInformed():
            return fold_tree_event(state, event)
        case ApprovalRelayed() | AnswerRelayed() | PeopleAwaited() | PeopleAnswered():
            return fold_tree_event(state, event)
        case NodesStarted():
            return state  # an agent has no nodes
        case Said() | TurnBegan() | TurnEnded() | TurnInterrupted() | IdleChecked():
            return state  # a session's: see `session`
        case Upgraded() | TurnExtended():
            return state  # a session's: see `session`
        case _:
            assert_never(event)


# -- people


def _fold_message(state: AgentState, event: MessageSent) -> AgentState:
    if event.id is not None:
        if event.id in state.inbox.seen_ids:
            return state
        seen = (*state.inbox.seen_ids, event.id)[-MOST_SEEN_IDS:]
        state = replace(state, inbox=replace(state.inbox, seen_ids=seen))
    if event.call_id is not None and has_question(state, event.call_id):
        call = next(call.call for call in state.step.calls if call.call.id == event.call_id)
        return close_step(set_result(state, _answer_to(call, event.message)))
    state = receive(state, event.message)
    end = state.end or state.step.proposed_end
    if end is None or not is_chosen_by_model(end) or exhausted_limit(state) is not None:
        return state
    # A message that arrives while the model's own end is under way makes the run go on, so that a model reads it.
    return replace(state, end=None, step=replace(state.step, end_checked=False, proposed_end=None))


def _answer_to(question: ToolCall, message: Message) -> ToolResult:
    return ToolResult(call_id=question.id, name=question.name, content=[*answer_parts(message)])


def _resolve_approval(state: AgentState, event: ApprovalResolved) -> AgentState:
    decision = event.decision
    asking = (c for c in state.step.calls if c.call.id == decision.call_id and c.state == "asking")
    waiting = next(asking, None)
    # A question is answered by a message, never by an approval decision.
    if waiting is None or waiting.kind == "person":
        return state
    record = record_of(decision, digest_of(state, waiting), event.at)
    if not decision.allow:
        by = f" by {decision.by}" if decision.by else ""
        why = f": {decision.reason}" if decision.reason else "."
        state = exchange_call(state, waiting, replace(waiting, approval=record))
        refused = text_result(waiting.call, f"This call was refused{by}{why}", is_error=True)
        return set_result(state, refused.model_copy(update={"not_run": waiting.stand_in is None}))
    call = waiting.call
    if decision.arguments is not None:
        call = with_arguments(state.spec.tool(tool_of(waiting)), call, decision.arguments)
        record = record.model_copy(update={"arguments": call.arguments})
    edited = decision.arguments is not None
    allowed = replace(waiting, call=call, state="ready", edited=edited, approval=record)
    if call.name == HANDOFF:
        return hooks.take_handoff(state, waiting, allowed)
    return exchange_call(state, waiting, allowed)


# -- the end


def _begin_end(state: AgentState, event: EndRequested) -> AgentState:
    """Start nothing any more. A call that was not started never will be, and gets its result."""
    if state.end is not None:
        return state
    unstarted = ("unpaid", "unchecked", "checking", "ready", "asking")
    for call in [call for call in state.step.calls if call.state in unstarted]:
        waited = f" ({event.reason}); {waited_words(call)}" if call.state == "asking" else ""
        unrun = unrun_result(call.call, f"the run was ended{waited}")
        state = set_result(state, unrun.model_copy(update={"not_run": call.stand_in is None}))
    state = hooks.withhold_unreviewed(state)
    # The hooks at the end are asked about the new end instead.
    state = replace(state, step=replace(state.step, proposed_end=None))
    return close_step(replace(state, ending=ending_reason(state, event.reason)))


def _give_up_pending(state: AgentState) -> AgentState:
    """Go on without work that did not answer. It may have happened, or not: the result says so."""
    text = "The run was ended while this call was under way; it may or may not have taken effect."
    for call in state.step.calls:
        if call.result is None:
            tool, result = state.spec.tool(call.call.name), text_result(call.call, text, is_error=True)
            writes = tool is not None and tool.effect == "write"
            state = set_result(state, mark_uncertain(result) if writes else result)
    state = replace(state, step=replace(state.step, asking_hooks=None))
    if state.step.asking_model:  # its usage is never heard of
        unheard = unheard_usage(state, 1)
        state = replace(state, step=replace(state.step, asking_model=False, summarizing=0))
        state = book(state, *unheard)
    return close_step(give_up_children(state))


def give_up_children(state: AgentState) -> AgentState:
    """Go on without the children that did not answer. The usage says that a part of it is missing."""
    for child in state.tree.children:
        outcome = unheard_outcome(child)
        state = add_left_below(book_outcome(state, outcome), child.key, outcome)
    return replace(state, tree=replace(state.tree, children=()))
