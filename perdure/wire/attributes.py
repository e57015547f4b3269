"""Search attributes of a run, as typed keys: workflows set them, lists and metrics read them."""

from typing import Any, Final

from temporalio.common import SearchAttributeKey

AGENT_NAME: Final = SearchAttributeKey.for_keyword("AgentName")
AGENT_STATUS: Final = SearchAttributeKey.for_keyword("AgentStatus")
"""A `perdure.wire.results.ListedStatus`."""
AGENT_STOP_REASON: Final = SearchAttributeKey.for_keyword("AgentStopReason")
AGENT_USER: Final = SearchAttributeKey.for_keyword("AgentUser")
AGENT_STEPS: Final = SearchAttributeKey.for_int("AgentSteps")
AGENT_COST_USD: Final = SearchAttributeKey.for_float("AgentCostUsd")
# Two attributes of their own: `AgentStatus` says that a run is parked, and lists select by cause and age.
AGENT_PARKED_FOR: Final = SearchAttributeKey.for_keyword("AgentParkedFor")
"""Kind of the error that parked the run; unset while it is not parked."""
AGENT_PARKED_AT: Final = SearchAttributeKey.for_datetime("AgentParkedAt")

_KEYS: Final[tuple[SearchAttributeKey[Any], ...]] = (
    AGENT_NAME,
    AGENT_STATUS,
    AGENT_STOP_REASON,
    AGENT_USER,
    AGENT_STEPS,
    AGENT_COST_USD,
    AGENT_PARKED_FOR,
    AGENT_PARKED_AT,
)
SEARCH_ATTRIBUTES: Final[dict[str, str]] = {key.name: key.indexed_value_type.name.title() for key in _KEYS}
"""Name and type of each attribute, as `temporal operator search-attribute create` takes them."""
