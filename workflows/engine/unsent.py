"""Unsent messages of a session: their turn has ended because no request with them could be sent.

Rules
1. They are the messages since the model's last reply: what people have said, and results that no model has read.
2. The transcript keeps them. Later calls have words in their place, so that the session goes on.
3. The reply of their turn names them. When that turn is extended, they are sent again.
"""

from dataclasses import replace
from typing import Final

from .amounts import bounds_of, missing
from .budget import LEAST_REPLY_TOKENS, call_amount
from .input_tokens import count_anew
from .state import AgentState, End

_REFUSED: Final = ("bad_request", "too_large", "context_overflow")
"""Kinds of errors with which a provider refuses a request as it is."""


def unsent_by(state: AgentState, end: End) -> tuple[int, ...]:
    """Return the indexes of the messages of a turn that could not be sent, if that is why the turn has ended."""
    if state.session is None or not _ended_by_request(state, end):
        return ()
    messages = state.messages
    replies = (i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant")
    begin = max(next(replies, -1) + 1, state.first_message)
    return tuple(range(begin, len(messages)))


def _ended_by_request(state: AgentState, end: End) -> bool:
    refused = end.failure is not None and end.failure.kind in _REFUSED
    if refused or end.stop_reason == "context_overflow":
        return True
    if end.stop_reason not in ("token_budget", "cost_budget") or state.session is None:
        return False
    # Would a whole turn's budget suffice for one call with them? If not, no later turn could even begin.
    bounds = bounds_of(state.session.turn_limits)
    return missing(call_amount(state, LEAST_REPLY_TOKENS), bounds) is not None


def put_unsent_in_words(state: AgentState, unsent: tuple[int, ...]) -> AgentState:
    """Return the state whose model reads words in place of these messages."""
    if not unsent:
        return state
    answered = tuple(index for index in state.inbox.unanswered if index not in unsent)
    transcript = replace(state.transcript, unsent=(*state.transcript.unsent, *unsent))
    return count_anew(replace(state, transcript=transcript, inbox=replace(state.inbox, unanswered=answered)))


def send_again(state: AgentState) -> AgentState:
    """Return the state of a turn that goes on: what it could not send is sent again."""
    kept = tuple(index for index in state.transcript.unsent if index < state.first_message)
    if kept == state.transcript.unsent:
        return state
    return count_anew(replace(state, transcript=replace(state.transcript, unsent=kept)))
