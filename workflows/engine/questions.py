"""Questions of a run to people: which wait, and which one a message answers.

Rules
1. A question is named by its call id; by its run too, where several runs of the tree ask under the same id.
2. A message that names no question answers the only one that waits, in the run or anywhere below it.
3. An answer reaches the question that it is for, or none. Each question is answered once: the same answer again
   changes nothing, and another one is refused.
4. A message is addressed when it is accepted, and its event names the question. So a question that opens later cannot
   take it. Where its question has ended in between, it is an ordinary message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perdure.messages import Document, Image, Message, Part, Text
from perdure.model import digest
from perdure.shown import cut, visible
from perdure.wire.results import Question
from perdure.wire.spec import AgentSpec

from .events import MessageSent, Said
from .people import RelayedAnswer
from .report import waiting_for
from .state import RunState
from .tree import waiting_below

MOST_RELAYED_ANSWERS = 100
"""Answers to questions below that a run remembers, to recognise the same ones."""
_MOST_LISTED = 8
"""Questions that a refusal lists."""
_MOST_TEXT = 100
"""Characters of each of them."""


def open_questions(state: RunState, unfolded: Iterable[object] = ()) -> list[Question]:
    """Return the questions that wait for an answer, in the run and below it.

    `unfolded`: events that the state does not contain yet.
    """
    answered = {event.call_id for event in unfolded if isinstance(event, MessageSent | Said)}
    own = [
        waiting_for(state, call)
        for call in state.open_calls
        if call.kind == "person" and call.state == "asking" and call.call.id not in answered
    ]
    return [item for item in [*own, *waiting_below(state.tree)] if isinstance(item, Question)]


def has_question(state: RunState, call_id: str | None) -> bool:
    """Return whether the run's own question of that id waits."""
    return any(
        call.call.id == call_id and call.kind == "person" and call.state == "asking"
        for call in state.open_calls
    )


def answer_parts(message: Message) -> list[Text | Image | Document]:
    """Return the parts of a message that an answer may have."""
    return [part for part in message.parts if isinstance(part, Text | Image | Document)]


def content_digest(parts: Sequence[Part]) -> str:
    """Return the digest by which two answers are the same."""
    return digest([part.model_dump(mode="json") for part in parts])


@dataclass(frozen=True, kw_only=True)
class MadeAnswer:
    """An answer that was given before to the question that a message names."""

    run_id: str
    call_id: str
    content: str
    message_id: str = ""

    def is_same(self, message: Message, message_id: str | None) -> bool:
        """Return whether the message is that answer again."""
        known = bool(message_id) and message_id == self.message_id
        return known or content_digest(answer_parts(message)) == self.content


def made_answer(
    state: RunState, run_id: str | None, call_id: str, unfolded: Iterable[object] = ()
) -> MadeAnswer | None:
    """Return the answer that the question of that name was given before, or None."""
    own = _own_answer(state, call_id, unfolded) if run_id in (None, state.id) else None
    if own is not None:
        return MadeAnswer(run_id=state.id, call_id=call_id, content=own)
    relayed = (item for item in reversed(state.answers) if item.call_id == call_id)
    found = next((item for item in relayed if run_id in (None, item.run_id)), None)
    if found is None:
        return None
    return MadeAnswer(
        run_id=found.run_id, call_id=call_id, content=found.content, message_id=found.message_id
    )


def _own_answer(state: RunState, call_id: str, unfolded: Iterable[object]) -> str | None:
    """Return the digest of the answer to the run's own question, or None."""
    for event in unfolded:
        if isinstance(event, MessageSent) and event.call_id == call_id:
            return content_digest(answer_parts(event.message))
        if isinstance(event, Said) and event.call_id == call_id:
            return content_digest(answer_parts(event.utterance.message))
    result = state.result_of(call_id)
    tool = state.spec.tool(result.name) if result is not None and isinstance(state.spec, AgentSpec) else None
    # An error is not a person's: the run ended before the question was answered.
    if result is None or result.is_error or tool is None or tool.kind != "person":
        return None
    return content_digest(result.content)


def remember_answer(state: RunState, item: RelayedAnswer) -> tuple[RelayedAnswer, ...]:
    """Return the answers to questions below with this one, the newest ones."""
    return (*state.answers, item)[-MOST_RELAYED_ANSWERS:]


def list_questions(questions: Sequence[Question]) -> str:
    """Return the questions as a list of `RUN_ID/CALL` and text for people."""
    listed = [
        f'{item.run_id}/{item.call_id} "{cut(visible(item.text), _MOST_TEXT)}"'
        for item in questions[:_MOST_LISTED]
    ]
    more = len(questions) - len(listed)
    return "; ".join([*listed, *([f"and {more} more"] if more else [])]) or "none"
