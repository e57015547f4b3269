"""Relays: updates of people that a run hands on to runs below it."""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from perdure.wire.effects import Relay
from perdure.wire.names import NO_ROOM, RELAY, SEND
from perdure.wire.results import Receipt

from .ending import RunIsEndingError
from .engine.events import AnswerRelayed
from .engine.people import RelayedAnswer
from .engine.questions import answer_parts, content_digest, list_questions, open_questions
from .inputs import is_within, no_room, refuse
from .loop import Loop
from .payloads import read_json
from .questions import Delivery, Incoming, read_receipt, receipt
from .renewal import MOST_RELAYED

_RELAYED_WITHIN = timedelta(seconds=10)
_DELIVERED_WITHIN = timedelta(minutes=1)
"""Time for a relay, the wait for a worker's slot and all attempts included: a run with a handler does not renew."""
IS_ENDING = "the run is ending"


class Relays:
    """Relays of one run."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._under_way: list[tuple[str, str]] = []
        """Run and question, which may be empty, of each message on its way: each keeps an update open."""

    @property
    def questions(self) -> list[tuple[str, str]]:
        """Run and call of the questions whose answers are on their way."""
        return [place for place in self._under_way if place[1]]

    def check_room(self) -> None:
        """Check that one message more may be on its way.

        Raises:
            ApplicationError: for the caller, who may send it again.

        """
        if len(self._under_way) >= MOST_RELAYED:
            raise no_room(
                f"{len(self._under_way)} messages are on their way to runs below; send it again in a moment"
            )

    async def deliver(self, delivery: Delivery, incoming: Incoming) -> Receipt:
        """Hand the message to the run below, and return the receipt for its sender.

        Raises:
            ApplicationError: for the caller; the run below did not take it.

        """
        run_id, call_id = delivery.run_id or "", delivery.call_id
        plain = {"run_id": run_id, "text": incoming.text}
        plain |= {"call_id": call_id} if call_id else {}
        # By its id the run below knows a message that comes twice.
        plain |= {"id": incoming.id} if incoming.id else {}
        self._under_way.append((run_id, call_id or ""))
        try:
            taken = read_receipt(await self.update(run_id, SEND, plain))
        except ApplicationError as error:
            raise self._with_elsewhere(error, run_id) if call_id else error from None
        finally:
            self._under_way.remove((run_id, call_id or ""))
        # The run below may have found its only question by itself.
        if taken.call_id:
            content = content_digest(answer_parts(incoming.message))
            answer = RelayedAnswer(
                run_id=taken.run_id or run_id,
                call_id=taken.call_id,
                content=content,
                message_id=incoming.id or "",
            )
            self._loop.events.append(AnswerRelayed(answer=answer))
        if taken.repeated or not taken.call_id:
            return taken
        reached = Delivery(run_id=taken.run_id or run_id, call_id=taken.call_id)
        return receipt(self._loop.state, reached, taken.unread, self._loop.events)

    def _with_elsewhere(self, error: ApplicationError, run_id: str) -> ApplicationError:
        """Return the refusal with the questions of other runs: the run below has listed its own."""
        state = self._loop.state
        questions = [] if state is None else open_questions(state, self._loop.events)
        elsewhere = [item for item in questions if not is_within(item.run_id, run_id)]
        if not elsewhere or error.type == NO_ROOM:
            return error
        return refuse(f"{error.message}; elsewhere these wait: {list_questions(elsewhere)}")

    async def update(self, run_id: str, name: str, argument: Any) -> Any:
        """Give an update to a run below; its answer, or its refusal, is the caller's."""
        relayed = workflow.execute_activity(
            RELAY,
            Relay(run_id=run_id, update=name, argument=argument),
            result_type=RawValue,
            start_to_close_timeout=_RELAYED_WITHIN,
            schedule_to_close_timeout=_DELIVERED_WITHIN,
            retry_policy=RetryPolicy(maximum_attempts=3),
            summary=f"{name} to {run_id}",
        )
        try:
            return read_json(await self._loop.ending.race(relayed))
        except RunIsEndingError:
            raise refuse(IS_ENDING) from None
        except ValueError as error:
            raise refuse(f"{run_id!r} has taken it, but its answer cannot be read: {error}") from None
        except ActivityError as error:
            raise _refusal(error, name, run_id) from None


def _refusal(error: ActivityError, name: str, run_id: str) -> ApplicationError:
    """Return the run's own refusal, or that nobody handed the update over."""
    cause = error.cause
    if isinstance(cause, TimeoutError):
        return refuse(
            f"{name}: run {run_id!r} did not take it in time, or no worker was free to hand it over; "
            "look at the run, and try again"
        )
    message = cause.message if isinstance(cause, ApplicationError) else str(cause)
    is_full = isinstance(cause, ApplicationError) and cause.type == NO_ROOM
    return no_room(message) if is_full else refuse(message)
