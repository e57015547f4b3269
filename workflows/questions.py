"""Address of a message: the run that it goes to, and the question that it answers. The rules stand in `engine`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from perdure.messages import Message
from perdure.wire.requests import RunMessage, SessionMessage
from perdure.wire.results import Question, Receipt

from .engine.events import MessageSent, Said
from .engine.questions import MadeAnswer, list_questions, made_answer, open_questions
from .engine.session import is_pending, reply_to
from .engine.state import AgentState, RunState
from .inputs import is_within, listener, message_of, parse, refuse, run_below


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A message that arrives, with the address that its sender gave."""

    message: Message
    text: Any
    """The content as it came, for a run below."""
    id: str | None = None
    call_id: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Place that a message goes to."""

    run_id: str | None = None
    """Run below; None: the run itself."""
    call_id: str | None = None
    """Question that it answers; None: it is an ordinary message."""
    made: MadeAnswer | None = None
    """The same answer, when it was given before: then nothing changes."""
    is_known: bool = False
    """True when a message of the same id was taken before."""

    @property
    def is_repeated(self) -> bool:
        """True when the message changes nothing."""
        return self.is_known or self.made is not None


def sent_message(raw: Any, update_id: str | None) -> Incoming:
    """Return the checked argument of `send`: a text, a list of parts, or the fields of `RunMessage`."""
    if not isinstance(raw, dict):
        return Incoming(message=message_of(raw), text=raw, id=update_id)
    fields = cast("dict[str, Any]", raw)
    # First, for its words: what a message needs before all is a text.
    message = message_of(fields)
    checked = parse("message", RunMessage, {**fields, "text": "checked"})
    run_id, call_id = _split(checked.run_id, checked.call_id)
    return Incoming(
        message=message,
        text=fields["text"],
        id=checked.id or update_id,
        call_id=call_id,
        run_id=run_id,
    )


def said_of(raw: Any) -> tuple[SessionMessage, Incoming]:
    """Return the checked argument of `say`, and the message in it with its address."""
    request = parse("message", SessionMessage, raw)
    run_id, call_id = _split(request.run_id, request.call_id)
    text: Any = request.text if isinstance(request.text, str) else raw["text"]
    message = message_of(text)
    return request, Incoming(message=message, text=raw["text"], id=request.id, call_id=call_id, run_id=run_id)


def _split(run_id: str | None, call_id: str | None) -> tuple[str | None, str | None]:
    """Return the run and the call of a name that may be `RUN_ID/CALL`."""
    named, _, call = (call_id or "").rpartition("/")
    if call_id is None or not named:
        return run_id, call_id
    if run_id not in (None, named):
        raise refuse(f"message: call_id names run {named!r}, and run_id names {run_id!r}")
    return named, call


def delivery_of(
    state: RunState | None,
    incoming: Incoming,
    unfolded: Iterable[object] = (),
    relaying: Sequence[tuple[str, str]] = (),
) -> Delivery:
    """Return where the message goes.

    `unfolded`: events that the state does not contain yet. `relaying`: run and call of the questions whose answers are
    on their way to runs below.

    Raises:
        ApplicationError: for the caller; the question does not wait, or the message must say which it answers.

    """
    unfolded = tuple(unfolded)
    if is_taken(state, incoming.id, unfolded):
        return Delivery(is_known=True)
    if state is None:
        if incoming.call_id is not None:
            raise refuse(f"no question {incoming.call_id!r} waits: the run has not begun")
        return Delivery()
    questions = open_questions(state, unfolded)
    if incoming.call_id is not None:
        return _find_named(state, incoming, incoming.call_id, questions, unfolded)
    waiting = [item for item in questions if (item.run_id, item.call_id) not in relaying]
    if incoming.run_id is not None:
        waiting = [item for item in waiting if item.run_id == incoming.run_id]
    if len(waiting) > 1:
        raise refuse(
            f"{len(waiting)} questions wait: say which one this answers, by its `call_id`; "
            f"these wait: {list_questions(waiting)}"
        )
    return _to(state, waiting[0]) if waiting else _ordinary(state, incoming)


def _find_named(
    state: RunState,
    incoming: Incoming,
    call_id: str,
    questions: Sequence[Question],
    unfolded: Sequence[object],
) -> Delivery:
    """Return where an answer goes that names its question."""
    run_id = incoming.run_id
    found = [item for item in questions if item.call_id == call_id and run_id in (None, item.run_id)]
    if len(found) == 1:
        return _to(state, found[0])
    if found:
        raise refuse(
            f"{len(found)} questions {call_id!r} wait in different runs: name the run too, as `RUN_ID/CALL`; "
            f"these wait: {list_questions(found)}"
        )
    name, waiting = f"{run_id}/{call_id}" if run_id else call_id, list_questions(questions)
    made = made_answer(state, run_id, call_id, unfolded)
    if made is not None and made.is_same(incoming.message, incoming.id):
        return Delivery(made=made)
    if made is not None:
        raise refuse(
            f"question {name!r} was answered otherwise, and that stays; these questions wait: {waiting}"
        )
    if run_id is not None and run_id != state.id and _goes_on(state, run_id):
        return Delivery(run_id=run_id, call_id=call_id)  # its report may be on its way
    raise refuse(f"no question {name!r} waits; these wait: {waiting}")


def _goes_on(state: RunState, run_id: str) -> bool:
    return any(is_within(run_id, child.run_id) for child in state.tree.children)


def _to(state: RunState, question: Question) -> Delivery:
    below = None if question.run_id == state.id else question.run_id
    return Delivery(run_id=below, call_id=question.call_id)


def _ordinary(state: RunState, incoming: Incoming) -> Delivery:
    """Return where a message goes that answers no question."""
    if incoming.run_id is not None and incoming.run_id != state.id:
        return Delivery(run_id=run_below(state, incoming.run_id))
    return Delivery(run_id=listener(state))


def is_taken(state: RunState | None, message_id: str | None, unfolded: Iterable[object] = ()) -> bool:
    """Return whether a message of that id has come before."""
    if message_id is None:
        return False
    for event in unfolded:
        if isinstance(event, MessageSent) and event.id == message_id:
            return True
        if isinstance(event, Said) and event.utterance.id == message_id:
            return True
    if state is None:
        return False
    if state.session is not None and (is_pending(state, message_id) or reply_to(state, message_id)):
        return True
    seen = state.inbox.seen_ids if isinstance(state, AgentState) else ()
    return message_id in seen or any(item.message_id == message_id for item in state.answers)


def receipt(
    state: RunState | None, delivery: Delivery, unread: int, unfolded: Iterable[object] = ()
) -> Receipt:
    """Return what the sender is told, once the message is accepted."""
    if delivery.is_known:
        return Receipt(
            unread=unread, repeated=True, words="this message has come before; nothing was changed"
        )
    if delivery.made is not None:
        made = delivery.made
        words = f"question {made.call_id!r} was already answered so; nothing was changed"
        return Receipt(unread=unread, call_id=made.call_id, run_id=made.run_id, repeated=True, words=words)
    own = state.id if state is not None and delivery.call_id is not None else ""
    return Receipt(
        unread=unread,
        call_id=delivery.call_id or "",
        run_id=delivery.run_id or own,
        words=_words(state, delivery, unfolded),
    )


def _words(state: RunState | None, delivery: Delivery, unfolded: Iterable[object]) -> str:
    if delivery.call_id is None:
        return "sent"
    answered = (delivery.run_id, delivery.call_id)
    left = [] if state is None else open_questions(state, unfolded)
    left = [item for item in left if (item.run_id, item.call_id) != answered]
    return f"answered {delivery.call_id!r}" + (f"; still open: {list_questions(left)}" if left else "")


def read_receipt(raw: Any) -> Receipt:
    """Return the receipt of a run below. One that cannot be read says nothing more than that it was sent."""
    try:
        return Receipt.model_validate(raw)
    except ValidationError:
        return Receipt(unread=1, words="sent")
