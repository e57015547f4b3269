"""Renewal: when a run continues as new, and with which version of the worker."""

from typing import Final

from temporalio import workflow

from .engine.commands import CallModel, Command, OpenTurn, StartNodes, Wait
from .engine.state import RunState, Session

IDLE_EVENTS: Final = 1000
"""An idle session with more events continues as new: whoever picks it up again reads few."""


class Renewal:
    """Decision of one run to continue as new. It depends on history alone."""

    def __init__(self) -> None:
        self.has_waited = False
        """True once this execution has waited for an event."""
        self.is_renewing = False
        """True while the run waits for its handlers: senders that wait for a reply must ask again."""

    def may_renew(self, command: Command, state: RunState) -> bool:
        """Return whether to continue as new before the command."""
        info = workflow.info()
        # Only before these commands: then all calls of a step have ended.
        if isinstance(command, CallModel | StartNodes):
            return info.is_continue_as_new_suggested()
        session = state.session
        if session is None or not isinstance(command, OpenTurn | Wait):
            return False
        if self._moves_to_new_version(session):
            return True
        is_idle = isinstance(command, Wait) and not session.turn_is_open and not session.queue
        long = info.is_continue_as_new_suggested() or info.get_current_history_length() > IDLE_EVENTS
        return is_idle and long

    def versioning(self, state: RunState) -> "workflow.ContinueAsNewVersioningBehavior | None":
        """Return which version goes on; None: the one that this run is pinned to."""
        moves = state.session is not None and self._moves_to_new_version(state.session)
        return workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE if moves else None

    def _moves_to_new_version(self, session: Session) -> bool:
        """Return whether new sessions go to another version than this one's, and no turn is open.

        Not before this execution has waited once: a session that stays where it is in spite of all, because a
        person has pinned it by hand, must not continue as new for ever.
        """
        if session.turn_is_open or not self.has_waited:
            return False
        return workflow.info().is_target_worker_deployment_version_changed()
