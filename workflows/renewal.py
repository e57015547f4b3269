"""Renewal: when a run continues as new, with which version of the worker, and which room it keeps for decisions.

Rules
1. The server bounds the history and the updates of one execution, and suggests to continue as new before that. A run
   does so before its next step, or as soon as it only waits: for people, for time, or for its lender.
2. Pending activities and children belong to the execution, so a run with any cannot continue as new. It then refuses
   messages before the bounds are reached. The rest of the room is for approval decisions, redrives and the end.
3. Updates that stay open are bounded in number too. Messages hold fewer than the server allows, so a decision gets in.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError

from perdure.messages import Message
from perdure.wire.names import RENEW_BLOBS

from .engine.commands import CallModel, Command, OpenTurn, StartNodes, Wait
from .engine.state import RunState, Session

IDLE_EVENTS: Final = 1000
"""An idle session with more events continues as new: whoever picks it up again reads few."""

# The server allows 2,000 updates, 51,200 events and 50 MB. Of each a part is kept for decisions.
_MOST_UPDATES: Final = 1800
_MOST_EVENTS: Final = 40_000
_MOST_BYTES: Final = 40 * 1024 * 1024
# Bounds of the history at which a server suggests to continue as new. Before them, only updates can be the reason.
_SUGGESTED_EVENTS: Final = 4096
_SUGGESTED_BYTES: Final = 4 * 1024 * 1024
_FEW_UPDATES: Final = 20
"""Updates that no server takes for too many."""

# The server allows ten open updates at a time.
MOST_WAITING: Final = 5
"""Messages whose senders wait for a reply."""
MOST_REPEATING: Final = 1
"""Senders that wait because the same message is on its way to a run below."""
MOST_RELAYED: Final = 2
"""Messages on their way to runs below."""


_RENEWAL_HEARTBEAT: Final = timedelta(seconds=10)


class Renewal:
    """Decision of one run to continue as new. It depends on history alone."""

    def __init__(self) -> None:
        self.has_waited = False
        """True once this execution has waited for an event."""
        self.is_renewing = False
        """True while the run waits for its handlers: senders that wait for a reply must ask again."""
        self.updates = 0
        """Updates that this execution has accepted."""

    def may_renew(self, command: Command, state: RunState) -> bool:
        """Return whether to continue as new before the command."""
        # Only before these commands: then all calls of a step have ended.
        if isinstance(command, CallModel | StartNodes):
            return workflow.info().is_continue_as_new_suggested()
        if isinstance(command, Wait) and self.is_due_while_waiting(state):
            return True
        session = state.session
        if session is None or not isinstance(command, OpenTurn | Wait):
            return False
        if self.moves_to_new_version(session):
            return True
        is_idle = isinstance(command, Wait) and not session.turn_is_open and not session.queue
        info = workflow.info()
        long = info.is_continue_as_new_suggested() or info.get_current_history_length() > IDLE_EVENTS
        return is_idle and long

    def is_due_while_waiting(self, state: RunState) -> bool:
        """Return whether a run that only waits is to continue as new.

        Not before this execution has waited once: a state that is too large by itself must not continue for ever.
        """
        has_waited = self.has_waited or self.updates >= _FEW_UPDATES
        return has_waited and not state.is_busy and workflow.info().is_continue_as_new_suggested()

    def is_short_of_room(self, state: RunState | None) -> bool:
        """Return whether the rest of this execution's room is kept for decisions."""
        if state is None or not (state.is_busy or self.is_renewing):
            return False  # it continues as new at once, if it must
        info = workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        # The server gives no reason for its suggestion, and may allow fewer updates than usual.
        by_updates = info.is_continue_as_new_suggested() and self.updates >= _FEW_UPDATES
        by_updates = by_updates and events < _SUGGESTED_EVENTS and size < _SUGGESTED_BYTES
        return by_updates or self.updates >= _MOST_UPDATES or events >= _MOST_EVENTS or size >= _MOST_BYTES

    def versioning(self, state: RunState) -> "workflow.ContinueAsNewVersioningBehavior | None":
        """Return which version goes on; None: the one that this run is pinned to."""
        moves = state.session is not None and self.moves_to_new_version(state.session)
        return workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE if moves else None

    def moves_to_new_version(self, session: Session) -> bool:
        """Return whether new sessions go to another version than this one's, and no turn is open.

        Not before this execution has waited once: a session that stays where it is in spite of all, because a
        person has pinned it by hand, must not continue as new for ever.
        """
        if session.turn_is_open or not self.has_waited:
            return False
        return workflow.info().is_target_worker_deployment_version_changed()


def renew_blobs(messages: Sequence[Message]) -> "asyncio.Task[None] | None":
    """Renew the blobs that carried messages name, beside the run's work; None if they name none.

    The chunks of the transcript are stored again by each continue-as-new, and get a new date so. What the messages
    name was stored once, perhaps months ago.
    """
    names = list(dict.fromkeys(name for message in messages for name in message.all_blobs))
    if not names:
        return None
    handle = workflow.start_activity(
        RENEW_BLOBS,
        names,
        result_type=RawValue,  # nobody reads it, so it need not be decoded
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=_RENEWAL_HEARTBEAT,
        schedule_to_close_timeout=timedelta(hours=1),
        summary=f"renew {len(names)} blobs",
    )
    return asyncio.create_task(_let_end(handle))


async def _let_end(handle: "workflow.ActivityHandle[Any]") -> None:
    # Nobody waits for it. The next continue-as-new tries again.
    with suppress(ActivityError, asyncio.CancelledError):
        await handle
