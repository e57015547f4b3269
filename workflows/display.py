"""Display of a run in the Temporal UI: search attributes when the status changes, details always."""

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
from perdure.wire.results import ListedStatus, listed_status

from .engine.carry import HistoryFormat
from .engine.program import RunningProgram
from .engine.report import cost_of, status_of
from .engine.state import RunState

_STEPS_BETWEEN_WRITES: Final = 20
"""Steps after which the attributes of a working run are written again."""


class Display:
    """Keeps the UI's view of a run. Each upsert is an event, and a write to the server's index."""

    def __init__(self, state: RunState, written: HistoryFormat, *, fresh: bool) -> None:
        self._sets_attributes = written.search_attributes
        self._shown: tuple[ListedStatus, str | None] | None = None
        self._shown_steps = 0
        self._has_cost = not fresh
        self._was_parked = workflow.info().typed_search_attributes.get(AGENT_PARKED_FOR) is not None
        self._first: list[SearchAttributeUpdate[Any]] = []
        if fresh:
            self._first = [AGENT_NAME.value_set(state.spec.name)]
            if state.request.user is not None:
                self._first.append(AGENT_USER.value_set(state.request.user))

    def show(self, program: RunningProgram[Any], state: RunState) -> None:
        """Show the state as it is now."""
        # Details cost no event: the UI reads them by a query.
        workflow.set_current_details(program.details(state))
        # Between two retries of an outage nothing has changed for people, and each change is an event.
        if not self._sets_attributes or _is_between_retries(state) or _is_ending_child(state):
            return
        steps = state.ledger.steps
        shown = (listed_status(status_of(state)), _person_needed_for(state))
        if shown == self._shown and steps < self._shown_steps + _STEPS_BETWEEN_WRITES:
            return
        self._shown, self._shown_steps = shown, steps
        updates: list[SearchAttributeUpdate[Any]] = [*self._first, AGENT_STATUS.value_set(shown[0])]
        if steps:
            updates.append(AGENT_STEPS.value_set(steps))
        updates.extend(self._cost_updates(state))
        updates.extend(self._parked_updates(state))
        if state.end is not None:
            updates.append(AGENT_STOP_REASON.value_set(state.end.stop_reason))
        workflow.upsert_search_attributes(updates)
        self._first = []

    def _parked_updates(self, state: RunState) -> list[SearchAttributeUpdate[Any]]:
        """Return why the run is parked, and since when; unset once it goes on."""
        parked = state.parking.parked if state.end is None else None
        was_parked, self._was_parked = self._was_parked, parked is not None
        if parked is not None:
            since = [] if parked.since is None else [AGENT_PARKED_AT.value_set(parked.since)]
            return [AGENT_PARKED_FOR.value_set(parked.kind), *since]
        return [AGENT_PARKED_FOR.value_unset(), AGENT_PARKED_AT.value_unset()] if was_parked else []

    def _cost_updates(self, state: RunState) -> list[SearchAttributeUpdate[Any]]:
        """Return the cost while it is known; unset once it no longer is, and never 0 for unknown."""
        cost = cost_of(state)
        if cost is not None and (state.is_priced or cost > 0):
            self._has_cost = True
            return [AGENT_COST_USD.value_set(cost / 1_000_000)]
        # Unset only what was set: each change of an attribute is an event.
        becomes_unknown = self._has_cost and state.ledger.cost_unknown
        self._has_cost = self._has_cost and not becomes_unknown
        return [AGENT_COST_USD.value_unset()] if becomes_unknown else []


def _person_needed_for(state: RunState) -> str | None:
    """Return the cause for which a person must act. A transient cause keeps its first place in the lists."""
    parked = state.parking.parked if state.end is None else None
    return parked.kind if parked is not None and parked.resumes_at is None else None


def _is_ending_child(state: RunState) -> bool:
    """Return whether the run ends together with the run above it: fifty at once must not be fifty writes more."""
    return state.ending is not None and state.end is None and state.tree.lineage is not None


def _is_between_retries(state: RunState) -> bool:
    ends = state.end is not None or state.ending is not None
    parking = state.parking
    return parking.outage is not None and parking.parked is None and not ends and not state.paused
