"""What the Temporal UI shows of a run: search attributes when the status changes, details always."""

from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributeUpdate

from .report import cost_of, details, status_of, steps_of
from .state import State
from .team import Team

_NAME = SearchAttributeKey.for_keyword("AgentName")
_STATUS = SearchAttributeKey.for_keyword("AgentStatus")
_STOP_REASON = SearchAttributeKey.for_keyword("AgentStopReason")
_USER = SearchAttributeKey.for_keyword("AgentUser")
_STEPS = SearchAttributeKey.for_int("AgentSteps")
_COST = SearchAttributeKey.for_float("AgentCostUsd")


class Display:
    """Keeps the UI's view of a run. Each upsert is an event, so only a change of status makes one."""

    def __init__(self, state: State | Team, search_attributes: bool, *, fresh: bool) -> None:
        self.search_attributes = search_attributes
        self._shown: str | None = None
        self._first: list[SearchAttributeUpdate[Any]] = []
        if fresh:
            self._first = [_NAME.value_set(state.spec.name)]
            if state.request.user is not None:
                self._first.append(_USER.value_set(state.request.user))
        self.show(state)

    def show(self, state: State | Team) -> None:
        """Show the state as it is now."""
        workflow.set_current_details(details(state))
        status = status_of(state)
        if not self.search_attributes or status == self._shown:
            return
        self._shown = status
        updates: list[SearchAttributeUpdate[Any]] = [
            *self._first,
            _STATUS.value_set(status),
            _STEPS.value_set(steps_of(state)),
        ]
        updates.extend(self._cost(state))
        if state.end is not None:
            updates.append(_STOP_REASON.value_set(state.end.stop_reason))
        workflow.upsert_search_attributes(updates)
        self._first = []

    def _cost(self, state: State | Team) -> list[SearchAttributeUpdate[Any]]:
        """The cost while it is known; taken back when it no longer is, and never 0 for unknown."""
        cost = cost_of(state)
        priced = isinstance(state, Team) or state.spec.models[state.model].price is not None
        if cost is not None and (priced or cost > 0):
            return [_COST.value_set(cost / 1_000_000)]
        return [_COST.value_unset()] if state.cost_unknown else []
