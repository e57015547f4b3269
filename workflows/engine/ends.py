"""Ends that a run comes to before its model's own: limits, stops, failures."""

from dataclasses import replace
from typing import Final

from perdure.messages import Message
from perdure.wire.results import Failure, StopReason

from .state import AgentState, End

_CHOSEN_BY_MODEL: Final[frozenset[StopReason]] = frozenset(
    {"end_turn", "max_tokens", "max_tool_calls", "max_handoffs", "max_iterations", "repetitive_handoff"}
)
"""Reasons of ends that a reply has made, be it the last one that a limit on calls or handoffs leaves."""


def is_chosen_by_model(end: End) -> bool:
    """Return whether the end gives way to a message that no model has read.

    A hook's end, a refusal, a failure and an end from outside do not. A handoff takes the message along.
    """
    return end.failure is None and end.stop_reason in _CHOSEN_BY_MODEL


def early_end(state: AgentState, reason: StopReason) -> End:
    """Return an end with the newest words of the model, or the agent's own words for this case.

    Words are no output where a type was asked for: there it is an answer that stood beside other calls, or none.
    """
    if state.spec.output_schema is not None:
        return End(stop_reason=reason, output=state.step.kept_output)
    words = newest_words(state.messages[state.first_message :])
    return End(stop_reason=reason, output=words or state.spec.fallback_message or "")


def without_words(state: AgentState, end: End) -> End:
    """Return the end with the agent's own words for this case instead of the model's."""
    has_type = state.spec.output_schema is not None
    return replace(end, output=None if has_type else state.spec.fallback_message or "")


def newest_words(messages: tuple[Message, ...]) -> str:
    """Return the newest text of the model, or an empty string."""
    # The newest message may consist of tool calls alone; then an earlier one holds the words.
    texts = (
        message.text
        for message in reversed(messages)
        if message.role == "assistant" and not _is_refused(message)
    )
    return next((text for text in texts if text.strip()), "")


def words_since_message(state: AgentState) -> str:
    """Return the newest text of the model since the last message that it got, or an empty string."""
    since = max(
        (index for index, message in enumerate(state.messages) if message.role == "user"),
        default=state.first_message,
    )
    return newest_words(state.messages[max(since, state.first_message) :])


def _is_refused(message: Message) -> bool:
    """Return whether a hook has refused the reply. Its text must not come back as a run's last words."""
    records = message.meta.hooks if message.meta else []
    return any(record.point == "after_model" and record.verdict in ("deny", "retry") for record in records)


def failure_of(state: AgentState, kind: str, message: str) -> Failure:
    """Return the failure, with the model in use and the step."""
    name = state.spec.models[state.chain.model].config.name
    return Failure(kind=kind, message=message, model=name, step=state.ledger.steps)


def fail(state: AgentState, kind: str, message: str, *, answers: bool = False) -> AgentState:
    """Return the state with a failed end. `answers`: the agent may answer all the same, if it is set to."""
    answers = answers and state.spec.on_failure == "answer"
    end = replace(early_end(state, "error"), failure=failure_of(state, kind, message), answers=answers)
    return replace(state, end=end)


def end_by_hook(state: AgentState, text: str) -> AgentState:
    """Return the state of a turn that a hook ends with this answer."""
    output = text if state.spec.output_schema is None else None
    return replace(state, end=End(stop_reason="guardrail", output=output))
