"""Limits: hard bounds of a run, checked before each call."""

from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Count = Annotated[int, Field(ge=1)]

_Span = Annotated[timedelta, Field(gt=timedelta(), le=timedelta(days=3650))]

_MOST_EXPLAINED = 8


class Limits(BaseModel):
    """Hard bounds; None is no bound. A limit ends the run as completed, with its StopReason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: _Count | None = 50
    """Model calls."""
    tool_calls: Annotated[int, Field(ge=0)] | None = None
    """Tool calls of the whole run, those that go back to the model as errors included."""
    per_tool: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict[str, int])
    """Calls of single tools, by name."""
    input_tokens: _Count | None = None
    """Tokens read, cached ones included, summed over all model calls."""
    output_tokens: _Count | None = None
    total_tokens: _Count | None = None
    cost_usd: Annotated[float, Field(gt=0, le=1_000_000_000, allow_inf_nan=False)] | None = None
    timeout: _Span | None = None
    """Wall clock from the start of the run, waiting for people included."""

    @property
    def cost_microusd(self) -> int | None:
        """`cost_usd` in millionths of a dollar."""
        return None if self.cost_usd is None else round(self.cost_usd * 1_000_000)

    def tightened_by(self, other: "Limits | None") -> Self:
        """The smaller bound of the two, field by field."""
        if other is None:
            return self
        mine, theirs = self.model_dump(), other.model_dump(exclude_unset=True)
        theirs.pop("per_tool", None)
        theirs_per_tool = other.per_tool
        merged = {name: _smaller(mine[name], theirs.get(name)) for name in mine if name != "per_tool"}
        tools = sorted({*self.per_tool, *theirs_per_tool})
        per_tool = {name: _smaller(self.per_tool.get(name), theirs_per_tool.get(name)) for name in tools}
        return type(self)(**merged, per_tool=per_tool)

    def replaced_by(self, other: "Limits | None") -> Self:
        """The bounds that are set in the other in place of its own; tool by tool."""
        if other is None:
            return self
        changed = {name: getattr(other, name) for name in other.model_fields_set}
        return self.model_copy(update={**changed, "per_tool": {**self.per_tool, **other.per_tool}})


class SwarmLimits(Limits):
    """Hard bounds of a swarm. Tokens, cost and tool calls are of all its agents together."""

    steps: _Count | None = None
    """Model calls of each agent run, beside the agent's own bound."""
    timeout: _Span | None = timedelta(minutes=15)
    max_handoffs: Annotated[int, Field(ge=0)] = 20
    """Handoffs: 1 allows one."""
    max_iterations: _Count = 20
    """Agent runs, the first included."""
    node_timeout: _Span | None = timedelta(minutes=5)
    """Wall clock of one agent run."""
    repetitive_handoff_detection_window: Annotated[int, Field(ge=0)] = 0
    """How many of the latest agent runs are looked at; 0 looks at none."""
    repetitive_handoff_min_unique_agents: Annotated[int, Field(ge=0)] = 0
    """Fewer different agents than this within the window: the swarm goes round in circles."""


class GraphLimits(Limits):
    """Hard bounds of a graph. Tokens, cost and tool calls are of all its nodes together."""

    steps: _Count | None = None
    """Model calls of each agent run, beside the agent's own bound."""
    max_node_executions: _Count | None = None
    """Runs of nodes, retries included. A graph with a cycle needs this or a timeout."""
    node_timeout: _Span | None = None
    """Wall clock of one run of a node."""


def _smaller(one: Any, other: Any) -> Any:
    return min((bound for bound in (one, other) if bound is not None), default=None)


def explain(error: ValidationError) -> str:
    """A validation error in one line of bounded length: field, what is wrong, and what was given."""
    found = error.errors(include_url=False)
    problems = [
        f"{_cut('.'.join(str(step) for step in problem['loc']) or 'value')}: "
        f"{_cut(problem['msg'], 300)} (got {_cut(repr(problem.get('input')))})"
        for problem in found[:_MOST_EXPLAINED]
    ]
    more = len(found) - len(problems)
    return "; ".join([*problems, f"and {more} more"] if more else problems)


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) < most else f"{text[: most - 3]}..."
