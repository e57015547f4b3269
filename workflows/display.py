"""What the Temporal UI shows of a run: search attributes when the status changes, details always."""

from typing import Any, Final

from temporalio import workflow
from temporalio.common import SearchAttributeUpdate

from perdure.wire.attributes import (
    AGENT_COST_USD,
    AGENT_NAME,
    AGENT_PARKED_AT,
    AGENT_PARKED_FOR,
    AGENT_STATUS,
    AGENT_STEPS,
    AGENT_STOP_REASON,
    AGENT_USER,
)
from perdure.wire.results import ListedStatus, Status, listed_status

from .engine.carry import Writing
from .engine.report import cost_of, details, status_of, steps_of
from .engine.state import State
from .engine.team import Team

_STEPS_UNSHOWN: Final = 20
"""While a run works, its steps and cost are written each time so many have been made."""


class Display:
    """Keeps the UI's view of a run. Each upsert is an event, and a write to the server's index."""

    def __init__(self, state: State | Team, writing: Writing, *, fresh: bool) -> None:
        self.writing = writing
        self._shown: tuple[Status | ListedStatus, str | None] | None = None
        self._shown_steps = 0
        self._has_cost = not fresh
        self._was_parked = workflow.info().typed_search_attributes.get(AGENT_PARKED_FOR) is not None
        self._first: list[SearchAttributeUpdate[Any]] = []
        if fresh:
            self._first = [AGENT_NAME.value_set(state.spec.name)]
            if state.request.user is not None:
                self._first.append(AGENT_USER.value_set(state.request.user))
        self.show(state)

    def show(self, state: State | Team) -> None:
        """Show the state as it is now."""
        workflow.set_current_details(details(state))
        if not self.writing.search_attributes:
            return
        steps = steps_of(state)
        sparse = self.writing.layout > 1
        if sparse and isinstance(state, State) and _is_between_naps(state):
            return  # nothing is better yet, and each change is an event
        status = listed_status(status_of(state)) if sparse else status_of(state)
        shown = (status, _mended_by_a_person(state) if sparse else None)
        if shown == self._shown and not (sparse and steps >= self._shown_steps + _STEPS_UNSHOWN):
            return
        self._shown, self._shown_steps = shown, steps
        updates: list[SearchAttributeUpdate[Any]] = [*self._first, AGENT_STATUS.value_set(status)]
        if steps or not sparse:
            updates.append(AGENT_STEPS.value_set(steps))
        updates.extend(self._cost(state))
        if sparse:
            updates.extend(self._parked(state))
        if state.end is not None:
            updates.append(AGENT_STOP_REASON.value_set(state.end.stop_reason))
        workflow.upsert_search_attributes(updates)
        self._first = []

    def _parked(self, state: State | Team) -> list[SearchAttributeUpdate[Any]]:
        """Why the run is parked, and since when; taken back when it goes on."""
        parked = state.parked if isinstance(state, State) and state.end is None else None
        was_parked, self._was_parked = self._was_parked, parked is not None
        if parked is not None:
            since = [] if parked.since is None else [AGENT_PARKED_AT.value_set(parked.since)]
            return [AGENT_PARKED_FOR.value_set(parked.kind), *since]
        return [AGENT_PARKED_FOR.value_unset(), AGENT_PARKED_AT.value_unset()] if was_parked else []

    def _cost(self, state: State | Team) -> list[SearchAttributeUpdate[Any]]:
        """The cost while it is known; taken back when it no longer is, and never 0 for unknown."""
        cost = cost_of(state)
        priced = isinstance(state, Team) or state.spec.models[state.model].price is not None
        if cost is not None and (priced or cost > 0):
            self._has_cost = True
            return [AGENT_COST_USD.value_set(cost / 1_000_000)]
        taken_back = self._has_cost and state.cost_unknown
        self._has_cost = self._has_cost and not taken_back
        return [AGENT_COST_USD.value_unset()] if taken_back else []


def _mended_by_a_person(state: State | Team) -> str | None:
    """What somebody must do something about. Of what time may mend, the first cause stays in the lists."""
    parked = state.parked if isinstance(state, State) and state.end is None else None
    return parked.kind if parked is not None and parked.resumes_at is None else None


def _is_between_naps(state: State) -> bool:
    over = state.end is not None or state.ending is not None
    return state.outage is not None and state.parked is None and not over and not state.paused
