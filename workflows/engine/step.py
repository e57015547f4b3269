"""Step of an agent: its messages in the transcript, its calls, and the results that close it.

Rules
1. Every call of a reply gets exactly one result, also a call that is never run.
2. The tool message is written once, when the last result is there, in the order of the calls.
3. A step with a handoff also waits for runs below that answer later. Their answers go to the agent that takes over.
"""

from dataclasses import replace

from perdure.fitting import any_is_cut, must_cut
from perdure.messages import Message, Text, ToolCall, ToolResult
from perdure.wire.names import HANDOFF

from .calls import with_result
from .ends import end_by_hook
from .input_tokens import added_tokens, result_bound
from .state import AgentState, Call, End


def append(state: AgentState, *messages: Message) -> AgentState:
    """Return the state with these messages at the end of its transcript."""
    new_tokens = added_tokens(state, messages)
    transcript = replace(
        state.transcript,
        messages=state.transcript.messages + messages,
        context_tokens=state.transcript.context_tokens + new_tokens,
    )
    return replace(state, transcript=transcript)


def append_unread(state: AgentState, *messages: Message) -> AgentState:
    """Return the state with these messages at the end of its transcript; the next reply is the first to answer them."""
    start = len(state.messages)
    indexes = range(start, start + len(messages))
    inbox = replace(state.inbox, unanswered=(*state.inbox.unanswered, *indexes))
    return append(replace(state, inbox=inbox), *messages)


def with_calls(state: AgentState, calls: tuple[Call, ...]) -> AgentState:
    """Return the state with these calls in its step."""
    return replace(state, step=replace(state.step, calls=calls))


def exchange_call(state: AgentState, old: Call, new: Call) -> AgentState:
    """Return the state with the new call in the place of the old one."""
    return with_calls(state, tuple(new if call is old else call for call in state.step.calls))


def set_result(state: AgentState, result: ToolResult) -> AgentState:
    """Return the state with the result of a call, unless the call has one already."""
    return with_calls(state, with_result(state.step.calls, result))


def receive(state: AgentState, message: Message) -> AgentState:
    """Return the state with the message in its inbox. It wakes a run that rests."""
    inbox = replace(state.inbox, messages=(*state.inbox.messages, message))
    return replace(state, inbox=inbox, step=replace(state.step, resting=False))


def close_step(state: AgentState) -> AgentState:
    """Write the step's tool message once every call has its result."""
    calls = state.step.calls
    # In the order of the calls, not of their ends: the transcript does not depend on which call was faster.
    results = [call.result for call in calls if call.result is not None]
    if not calls or len(results) < len(calls) or _holds_handoff(state):
        return state
    if _gives_up_handoff(state):
        results = [_undo_handoff(result) for result in results]
    message = Message(role="tool", parts=list(results))
    spilled = any(result.spilled for result in results) or must_cut([message], result_bound(state))
    state = append(offer_rest(with_calls(state, ()), cut=spilled), message)
    if state.step.ending_text is not None and state.end is None and state.ending is None:
        return end_by_hook(state, state.step.ending_text)
    handoff = state.step.handoff
    if handoff is None or state.end is not None or state.ending is not None:
        return state
    return replace(state, end=End(stop_reason="handoff", output=handoff.model_dump(mode="json")))


def _is_over(state: AgentState) -> bool:
    return state.end is not None or state.ending is not None or state.step.ending_text is not None


def _holds_handoff(state: AgentState) -> bool:
    return state.step.handoff is not None and bool(state.tree.children) and not _is_over(state)


def _gives_up_handoff(state: AgentState) -> bool:
    return state.step.handoff is not None and _is_over(state)


def _undo_handoff(result: ToolResult) -> ToolResult:
    """Return the result; that of a handoff that was taken, and does not happen, says so."""
    if result.name != HANDOFF or result.is_error:
        return result
    return result.model_copy(
        update={
            "content": [Text(text="not handed over: the run was ended")],
            "is_error": True,
            "not_run": True,
        }
    )


def offer_rest(state: AgentState, *, cut: bool) -> AgentState:
    """Offer the tool that reads on, for the rest of the run, once a result was cut."""
    if not cut or state.transcript.spilled:
        return state
    return replace(state, transcript=replace(state.transcript, spilled=True))


def offer_rest_if_cut(state: AgentState) -> AgentState:
    """Offer the tool that reads on, if the model that is asked from here on has room for less of the results."""
    if state.transcript.spilled:
        return state
    return offer_rest(state, cut=any_is_cut(state.transcript.visible, result_bound(state)))


def answer_calls(state: AgentState, message: Message, why: str) -> AgentState:
    """Give every call a result, even one that is never run: a transcript must stay well-formed."""
    if not message.tool_calls:
        return state
    return append(state, Message(role="tool", parts=[unrun_result(call, why) for call in message.tool_calls]))


def unrun_result(call: ToolCall, why: str) -> ToolResult:
    """Return the result of a call that is never run, with the reason."""
    return not_run_result(call, f"not run: {why}")


def not_run_result(call: ToolCall, text: str) -> ToolResult:
    """Return the error of a call that was never started."""
    return text_result(call, text, is_error=True).model_copy(update={"not_run": True})


def text_result(call: ToolCall, text: str, *, is_error: bool) -> ToolResult:
    """Return a result of one text."""
    return ToolResult(call_id=call.id, name=call.name, content=[Text(text=text)], is_error=is_error)
