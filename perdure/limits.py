"""Limits: hard bounds of a run, checked before each call."""

from datetime import timedelta
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from perdure.definitions import DefinitionModel

MOST_COUNT: Final = 10**15
"""Largest bound of a count. A larger one, such as `sys.maxsize`, is taken as this one: no run reaches it."""
MOST_COST_USD: Final = 1_000_000_000

_Bounded = AfterValidator(lambda count: min(count, MOST_COUNT))
_Count = Annotated[int, Field(ge=1), _Bounded]
_Calls = Annotated[int, Field(ge=0), _Bounded]

_Span = Annotated[timedelta, Field(gt=timedelta(), le=timedelta(days=3650))]

_OPTIONS = frozenset({"per_tool_ends", "identical_calls"})
_MERGED_APART = frozenset({"per_tool", "per_tool_ends", "timeout_excludes_people"})


class Limits(DefinitionModel):
    """Hard bounds of an agent; None is no bound.

    A limit ends the run as completed, with its StopReason. `per_tool` and `identical_calls` refuse single calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: _Count | None = 50
    """Model calls of the run."""
    tool_calls: _Calls | None = None
    """Tool calls of the run, including those that are answered with an error."""
    per_tool: dict[str, _Calls] = Field(default_factory=dict[str, int])
    """Calls of each tool, by its name. A call beyond the bound is refused in words, and the run goes on."""
    per_tool_ends: bool = False
    """True: a call beyond a bound of `per_tool` ends the run, after one last call of the model without tools."""
    identical_calls: _Count | None = None
    """Calls of one tool with the same arguments, in a run or a turn. One more is refused in words. A tool that is
    made to be asked again has `polls=True`: its calls are not counted."""
    input_tokens: _Count | None = None
    """Input tokens of all model calls together, cached ones included."""
    output_tokens: _Count | None = None
    total_tokens: _Count | None = None
    cost_usd: Annotated[float, Field(gt=0, le=MOST_COST_USD, allow_inf_nan=False)] | None = None
    timeout: _Span | None = None
    """Wall clock from the start of the run, including the time in which it waits for people.

    Of a turn, and of an agent that another run called, it counts no time in which people alone are waited for.
    """
    timeout_excludes_people: bool | None = Field(default=None, exclude_if=lambda v: v is None)
    """True: `timeout` counts no time in which an approval or a question waits, and nothing else is pending. False: it
    counts all time. None: as said there."""

    @model_serializer(mode="wrap")
    def _leave_out_options(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that nobody has set: a run that does not use them writes the same spec as before."""
        fields: dict[str, Any] = write(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in _OPTIONS or name in self.model_fields_set
        }

    @property
    def cost_microusd(self) -> int | None:
        """`cost_usd` in millionths of a dollar."""
        return None if self.cost_usd is None else round(self.cost_usd * 1_000_000)

    def tightened_by(self, request: "Limits | None") -> Self:
        """Return the smaller of the two bounds, field by field and tool by tool."""
        if request is None:
            return self
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in _MERGED_APART}
        # Only fields that are set: a default of the request must not bound what nobody wanted bounded.
        requested = {name: getattr(request, name) for name in request.model_fields_set}
        merged = {name: _smaller(own[name], requested.get(name)) for name in own}
        merged["per_tool_ends"] = self.per_tool_ends or request.per_tool_ends
        tools = sorted({*self.per_tool, *request.per_tool})
        per_tool = {name: _smaller(self.per_tool.get(name), request.per_tool.get(name)) for name in tools}
        stands = self._merge_people(request)
        return type(self)(**merged, per_tool=per_tool, timeout_excludes_people=stands)

    def _merge_people(self, request: "Limits") -> bool | None:
        """Return whether the merged `timeout` excludes people: a request cannot widen a `timeout` of ours."""
        own, requested = self.timeout_excludes_people, request.timeout_excludes_people
        if requested is None:
            return own
        strictness: list[bool | None] = [False, None, True]
        return requested if self.timeout is None else min(own, requested, key=strictness.index)

    def replaced_by(self, request: "Limits | None") -> Self:
        """Return the limits with those bounds replaced that are set in `request`, tool by tool."""
        if request is None:
            return self
        changed = {name: getattr(request, name) for name in request.model_fields_set}
        return self.model_copy(update={**changed, "per_tool": {**self.per_tool, **request.per_tool}})


class SwarmLimits(Limits):
    """Hard bounds of a swarm. Tokens, cost and tool calls are those of all its agents together."""

    steps: _Count | None = None
    """Model calls of each agent run, in addition to the agent's own bound."""
    timeout: _Span | None = timedelta(minutes=15)
    max_handoffs: Annotated[int, Field(ge=0)] = 20
    """Most handoffs of the run."""
    max_iterations: _Count = 20
    """Most agent runs, the first included."""
    node_timeout: _Span | None = timedelta(minutes=5)
    """Time of one agent run, without that in which people alone are waited for."""
    node_timeout_excludes_people: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False: `node_timeout` counts all time."""
    repetitive_handoff_detection_window: Annotated[int, Field(ge=0)] = 0
    """Number of latest agent runs in which the swarm looks for a circle; 0 turns the check off."""
    repetitive_handoff_min_unique_agents: Annotated[int, Field(ge=0)] = 0
    """Least number of different agents within the window; fewer end the swarm as a circle."""


class GraphLimits(Limits):
    """Hard bounds of a graph. Tokens, cost and tool calls are those of all its nodes together."""

    steps: _Count | None = None
    """Model calls of each agent run, in addition to the agent's own bound."""
    max_node_executions: _Count | None = None
    """Most runs of nodes, retries included. A graph with a cycle needs this bound or a timeout."""
    node_timeout: _Span | None = None
    """Time of one run of a node, without that in which people alone are waited for."""
    node_timeout_excludes_people: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False: `node_timeout`, and the `timeout` of each node, count all time."""


class PatternLimits(Limits):
    """Hard bounds of a pattern. Tokens, cost and tool calls are those of all its nodes together."""

    steps: _Count | None = None
    """Model calls of each agent run, in addition to the agent's own bound."""
    # Nobody can prove that a scheduler of your own ends, so there is a bound unless you take it away.
    max_node_executions: _Count | None = 100
    """Most runs of nodes."""
    node_timeout: _Span | None = None
    """Time of one run of a node, without that in which people alone are waited for. The scheduler may set another."""
    node_timeout_excludes_people: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False: `node_timeout`, and the `timeout` of each node, count all time."""


def _smaller(first: Any, second: Any) -> Any:
    return min((bound for bound in (first, second) if bound is not None), default=None)
