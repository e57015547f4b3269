"""Leftovers of a run: what it was sent or asked for and did not do, in words for `RunResult.missing`.

Rules
1. Nothing disappears. Every accepted message is read by a model, goes on to whoever reads it next, or is named.
   Every call that a model asked for is carried out, goes back to a model with its reason, or is named.
2. This holds for every end, also for those that the model chooses itself. There a failed call is named only if no
   reply has followed: a model that has seen it, and went on, has decided about it. A write that a limit has refused
   is named always, also after a handoff: no model has decided that it is not needed.
3. Unread messages of a session's turn are the next turn's. Those of a run below go to whoever takes over from it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from perdure.messages import Message, ToolCall, ToolResult
from perdure.wire.results import RunResult

from .calls import NOT_ACCEPTED_YET
from .refusals import is_refused
from .report import shorten, signature
from .state import AgentState, End
from .unsent import unsent_by

ANSWER_NOT_READ: Final = "answer not read: "
MOST_LINES: Final = 200
"""Most lines of one result. A tree of many runs could else make a result that no payload can hold."""
_MOST_CHARS: Final = 200


def left_undone(state: AgentState, end: End) -> list[str]:
    """Return what an agent's run, or its turn, has left undone: messages, calls, and the rest of its plan."""
    # A refused write may stand in both lists.
    calls = dict.fromkeys([*refused_lines(state), *_call_lines(state, end)])
    below = [line for _, line in state.inbox.below]
    lines = [*_unread_lines(state, end), *calls, *below]
    # An agent that ends by itself, or hands over, may leave its plan as it is.
    if end.stop_reason not in ("end_turn", "handoff"):
        items = state.transcript.plan
        lines += [f"planned: {item.text}" for item in items if item.state in ("pending", "in_progress")]
    return cut_lines(lines)


def cut_lines(lines: Sequence[str]) -> list[str]:
    """Return the lines, or the first of them and the number of the others."""
    if len(lines) <= MOST_LINES:
        return list(lines)
    kept = MOST_LINES - 1
    return [*lines[:kept], f"and {len(lines) - kept} more"]


def unread_lines(messages: Iterable[Message]) -> list[str]:
    """Return a line for each message that nobody has read."""
    return [f"message not read: {_words_of(message)}" for message in messages]


def _words_of(message: Message) -> str:
    attached = sum(part.kind in ("image", "document") for part in message.parts)
    words = shorten(" ".join(message.text.split()), _MOST_CHARS)
    return f"{words} (and {attached} attached)".strip() if attached else words


def unread_messages(state: AgentState) -> list[Message]:
    """Return the accepted messages that no model has read, without the task."""
    sent = [state.messages[index] for index in state.inbox.unanswered if index != state.transcript.own_start]
    return [*sent, *state.inbox.messages]


def _all_unread(state: AgentState) -> list[Message]:
    return [*(state.messages[index] for index in state.inbox.unanswered), *state.inbox.messages]


def unread_answers(state: AgentState) -> list[Message]:
    """Return people's answers that no model has read, as messages to a run that did not ask."""
    made, messages = calls_by_id(state), state.messages[state.first_message :]
    at = next((at for at in range(len(messages) - 1, -1, -1) if messages[at].role != "user"), None)
    if at is None or messages[at].role != "tool":
        return []
    answers = [result for result in messages[at].tool_results if result.call_id in made]
    return [
        Message.user(f"(A person was asked: {signature(made[result.call_id])}) {result.text}")
        for result in answers
        if _is_answer(state, result)
    ]


def calls_by_id(state: AgentState) -> dict[str, ToolCall]:
    """Return the calls that the model asked for in the run, or in the current turn."""
    return {call.id: call for message in state.messages[state.first_message :] for call in message.tool_calls}


def add_left_below(state: AgentState, key: str, outcome: RunResult) -> AgentState:
    """Return the state that knows what a run below has left undone, until a model has seen it."""
    if not outcome.missing:
        return state
    lines = tuple((state.ledger.steps + 1, f"{key}: {line}") for line in outcome.missing)
    return replace(state, inbox=replace(state.inbox, below=(*state.inbox.below, *lines)))


def _unread_lines(state: AgentState, end: End) -> list[str]:
    if state.session is not None:
        if not state.session.turn_is_open:
            return unread_lines(_all_unread(state))
        # The next turn reads the others: they stand in the transcript, or in the queue.
        unsent = unsent_by(state, end)
        return unread_lines(state.messages[index] for index in state.inbox.unanswered if index in unsent)
    task = state.transcript.own_start in state.inbox.unanswered
    taken_along = end.stop_reason == "handoff" and state.tree.lineage is not None
    unread = [] if taken_along else unread_lines(unread_messages(state))
    return [*(["the task: no model has answered it"] if task else []), *unread]


def _call_lines(state: AgentState, end: End) -> list[str]:
    messages = state.messages[state.first_message :]
    at = next((at for at in range(len(messages) - 1, -1, -1) if messages[at].role == "tool"), None)
    if at is None:
        return []
    was_seen = any(message.role == "assistant" for message in messages[at + 1 :])
    if was_seen and end.stop_reason in ("end_turn", "handoff"):
        return []
    made = calls_by_id(state)
    # Only the last step's failures count: the model has seen earlier ones, and went on.
    results = messages[at].tool_results
    failed = [result for result in results if result.call_id in made and _is_left(result)]
    # A person's answer is a message too.
    answers = [] if was_seen else [result for result in results if _is_answer(state, result)]
    return [
        *(call_line(made[result.call_id], result) for result in failed),
        *(f"{ANSWER_NOT_READ}{shorten(result.text, _MOST_CHARS)}" for result in answers),
    ]


def refused_lines(state: AgentState) -> list[str]:
    """Return a line for each write that a limit has refused."""
    made = calls_by_id(state) if state.ledger.refused else {}
    return [call_line(made[result.call_id], result) for result in refused_writes(state)]


def refused_writes(state: AgentState) -> list[ToolResult]:
    """Return the writes that a limit has refused. The caller must know, though the model has gone on without them."""
    if not state.ledger.refused:
        return []
    messages = state.messages[state.first_message :]
    made = calls_by_id(state)
    results = [result for message in messages for result in message.tool_results if result.call_id in made]
    done = [made[result.call_id] for result in results if not result.is_error]
    return [
        result
        for result in results
        if is_refused(result)
        and _writes(state, call := made[result.call_id])
        # A person may have given the run more, and the model may have made the call again.
        and not any(later.name == call.name and later.arguments == call.arguments for later in done)
    ]


def _writes(state: AgentState, call: ToolCall) -> bool:
    tool = state.spec.tool(call.name)
    return tool is not None and tool.effect == "write"


def _is_answer(state: AgentState, result: ToolResult) -> bool:
    tool = state.spec.tool(result.name)
    return tool is not None and tool.kind == "person" and not result.is_error


def _is_left(result: ToolResult) -> bool:
    # An answer that stood beside other calls is the output, if the run has ended before another one came.
    return result.is_error and not (result.not_run and result.text == NOT_ACCEPTED_YET)


def call_line(call: ToolCall, result: ToolResult) -> str:
    """Return the call and its result in one line."""
    return f"{signature(call)}: {shorten(result.text, _MOST_CHARS)}"
