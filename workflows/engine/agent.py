"""Agent: the program of one agent's loop. Its rules stand in `state`, `decide` and `fold`."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from perdure.limits import Limits
from perdure.messages import Message, estimated_tokens
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult, RunStatus, StopReason
from perdure.wire.spec import AgentSpec
from perdure.wire.tree import Amount

from . import fold as folding
from .agent_report import agent_details, agent_result, agent_status
from .budget import LEAST_REPLY_TOKENS, call_amount
from .commands import Command
from .decide import decide
from .ends import newest_words
from .events import Event
from .extension import (
    FIELDS_BY_REASON,
    amounts_needed,
    calls_needed,
    clocks_after,
    extension_note,
    limits_after,
    past_after,
    with_granted,
)
from .hooks import with_hooks
from .past import Extension
from .state import AgentState, Chain, End, Origin, Parking, Step
from .step import append, append_unread
from .tree import tree_of
from .unsent import put_unsent_in_words, send_again, unsent_by

_NOTE_TOKENS: Final = 256
"""Tokens by which the note of an extension may be longer than that of one that grants nothing: it names bounds."""


@dataclass(frozen=True)
class AgentProgram:
    """Program of an agent's run."""

    spec: AgentSpec
    state_type = AgentState

    def initial(self, request: RunRequest, now: datetime, origin: Origin) -> AgentState:
        """Return the state of a run that begins with the request's prompt."""
        return folding.initial(request, self.spec, now, origin)

    def empty(self, request: RunRequest, now: datetime, origin: Origin) -> AgentState:
        """Return the state before any prompt."""
        return folding.empty_state(request, self.spec, now, origin)

    def restore(self, state: AgentState) -> AgentState:
        """Return the carried state: all of it is values already."""
        return state

    def go_on(self, state: AgentState, extension: Extension) -> AgentState:
        """Return the closed run's state with its end taken back; its model reads who has granted what."""
        past, limits = past_after(state, extension), limits_after(state, extension)
        state = replace(
            state,
            limits=limits,
            new_limits=with_granted(state.new_limits or Limits(), extension.limits),
            **clocks_after(state, limits, past, extension.child),
            past=past,
            tree=tree_of(extension.child),
            step=Step(
                redo=state.step.redo,
                start_checked=state.step.start_checked,
                # What the run has used counts.
                identical=state.step.identical,
            ),
            chain=Chain(),
            parking=Parking(),
            paused=False,
            ending=None,
            end=None,
        )
        return append(send_again(state), Message.user(extension_note(extension.record)))

    def needs(self, state: AgentState, reason: StopReason) -> list[str]:
        """Return each bound that leaves no room for another model call, or for the call that was refused."""
        limits, steps = state.limits, state.ledger.steps
        at_end = limits.steps is not None and not state.step.redo and steps >= limits.steps
        short_of_steps = [f"steps to {steps + 1} or more"] if at_end else []
        wanted_at_most = call_amount(_with_longest_note(state), LEAST_REPLY_TOKENS)
        granted = state.past.extensions[-1].limits
        # Whoever grants none of the bounds that ended the run has to grant more, and the note of that is longer.
        is_short = granted.keys().isdisjoint(FIELDS_BY_REASON[reason])
        wanted = wanted_at_most if is_short else call_amount(state, LEAST_REPLY_TOKENS)
        return [
            *short_of_steps,
            *calls_needed(state, limits, reason),
            *amounts_needed(limits, state, wanted, named=wanted_at_most),
        ]

    def fold(self, state: AgentState, event: Event) -> AgentState:
        """Return the state after the event."""
        return folding.fold(state, event)

    def decide(self, state: AgentState) -> Command:
        """Return the next command."""
        # `decide` returns `Wait` for calls that hooks hold; `with_hooks` turns that into a question.
        return with_hooks(state, decide(state))

    def status(self, state: AgentState) -> RunStatus:
        """Return the status."""
        return agent_status(state)

    def result(self, state: AgentState, end: End) -> RunResult:
        """Return the result."""
        return agent_result(state, end)

    def details(self, state: AgentState) -> str:
        """Return the page in the Temporal UI."""
        return agent_details(state)

    # -- turns of a session

    def begin_turn(self, state: AgentState, message: Message) -> AgentState:
        """Return the state with the message at the end of the transcript."""
        # Kept until now: the last turn might have gone on.
        state = replace(state, step=replace(state.step, identical={}))
        return append_unread(state, message)

    def end_turn(self, state: AgentState, end: End) -> AgentState:
        """Return the state without the turn's own troubles. Unread messages of the turn go back to the session."""
        state = put_unsent_in_words(state, unsent_by(state, end))
        unread = [utterance.message for utterance in state.session.unread] if state.session else []
        messages = tuple(message for message in state.inbox.messages if message not in unread)
        return replace(
            state,
            inbox=replace(state.inbox, messages=messages),
            step=Step(identical=state.step.identical),
            chain=Chain(),
            parking=Parking(),
            ending=None,
            end=None,
        )

    def newest_words(self, state: AgentState, end: End) -> tuple[str, int | None]:
        """Return the newest text of the model in this turn, and its message."""
        # Hooks have set or checked the output, and nothing else of the turn may be given as its text.
        if "on_end" in state.spec.hooks or (state.spec.hooks and end.stop_reason == "guardrail"):
            return (end.output, None) if isinstance(end.output, str) else ("", None)
        text = newest_words(state.messages[state.first_message :])
        if not text:  # then the agent has its own words for such an end, or says what happened
            return (end.output, None) if isinstance(end.output, str) else ("", None)
        indexes = range(len(state.messages) - 1, -1, -1)
        holds = (
            i for i in indexes if state.messages[i].role == "assistant" and state.messages[i].text == text
        )
        return text, next(holds)

    def least_turn(self, state: AgentState) -> Amount:
        """Return the amount of the smallest model call."""
        return call_amount(state, LEAST_REPLY_TOKENS)


def _with_longest_note(state: AgentState) -> AgentState:
    """Return the state as if its newest message, which lists what was granted, were as long as it can become."""
    record = state.past.extensions[-1]
    notes = (record, record.model_copy(update={"limits": {}}))
    now, shortest = (estimated_tokens(Message.user(extension_note(record))) for record in notes)
    tokens = state.transcript.context_tokens - now + shortest + _NOTE_TOKENS
    return replace(state, transcript=replace(state.transcript, context_tokens=tokens))
