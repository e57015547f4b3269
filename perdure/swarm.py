"""Swarm: agents that hand a task to each other until an agent answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import ClassVar, Final, Literal, get_args

from perdure.agent import _NAME, Agent
from perdure.definitions import Definition, check_types
from perdure.errors import DefinitionError
from perdure.limits import SwarmLimits
from perdure.mcp import may_be_tool_of
from perdure.members import collect_members
from perdure.model import ToolDefinition
from perdure.prices import PriceTable
from perdure.wire.names import HANDOFF
from perdure.wire.spec import SwarmMemory, SwarmSpec

HANDOFF_TOOL: Final = ToolDefinition(
    name=HANDOFF,
    description=(
        "Hand the task to another agent. Your own turn ends at once: you will not see a result, and the "
        "other agent knows only what you tell it here, what you put into the context, and the user's "
        "request. Hand off once a turn, and to one agent. Do not hand off when you can answer yourself."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "agent_name": {"type": "string", "description": "The name of the agent to hand off to."},
            "message": {
                "type": "string",
                "description": "What the agent is to do, and what it must know for it.",
            },
            "context": {
                "type": "object",
                "description": "Findings for all agents that come after you, by name.",
            },
        },
        "required": ["agent_name", "message"],
        "additionalProperties": False,
    },
)
"""Definition of the tool for the model. The run checks `agent_name` against its peers."""


@dataclass(frozen=True, kw_only=True)
class Swarm(Definition):
    """A swarm.

    The entry agent gets the task. An agent either answers, which ends the swarm, or hands the task on.
    Making a swarm raises DefinitionError for everything that could not run.
    """

    member_kind: ClassVar[Literal["swarm"]] = "swarm"

    name: str
    agents: Sequence[Agent]
    """Agents of the swarm, in the order in which they are shown to each other."""
    entry: Agent | str | None = None
    """Agent that gets the task; None: the first."""
    limits: SwarmLimits = field(default_factory=SwarmLimits)
    memory: SwarmMemory = "own"
    """What comes before the prompt of an agent that gets the task again. "own": the transcript of its earlier visits.
    "shared": before every visit but the first, the transcripts of all visits. "none": nothing."""
    description: str = ""
    """Purpose of the swarm, for agents that call it."""
    entry_name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self, f"swarm {self.name!r}")
        if not _NAME.fullmatch(self.name):
            raise DefinitionError(
                f"swarm name {self.name!r}: use letters, digits, '_', '-' and '.', starting with a letter"
            )
        # The dataclass is frozen, and these fields are normalized or derived.
        object.__setattr__(self, "agents", self._check_agents())
        object.__setattr__(self, "entry_name", self._check_entry())
        if self.memory not in get_args(SwarmMemory):
            raise self._wrong(f"memory must be 'own', 'shared' or 'none', not {self.memory!r}")
        self._check_limits()
        collect_members(self)

    def _check_agents(self) -> tuple[Agent, ...]:
        if not isinstance(self.agents, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(f"agents must be a list, not {self.agents!r}")
        agents = tuple(self.agents)
        if not agents:
            raise self._wrong("it has no agents; add at least one")
        seen: set[str] = set()
        for agent in agents:
            if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise self._wrong(f"{agent!r} is not an Agent")
            if agent.name in seen:
                raise self._wrong(f"two agents are called {agent.name!r}; rename one, or list it once")
            seen.add(agent.name)
        return agents

    def _check_entry(self) -> str:
        entry = self.agents[0] if self.entry is None else self.entry
        if isinstance(entry, str) and entry in self.members:
            return entry
        # An equal agent will do; another agent of the same name would silently not be the entry.
        if isinstance(entry, Agent) and entry in self.agents:
            return entry.name
        shown = entry.name if isinstance(entry, Agent) else entry
        raise self._wrong(f"entry {shown!r} is not one of its agents ({', '.join(self.members)})")

    def _check_limits(self) -> None:
        if not isinstance(self.limits, SwarmLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(f"limits must be SwarmLimits, not {self.limits!r}")
        window = self.limits.repetitive_handoff_detection_window
        unique = self.limits.repetitive_handoff_min_unique_agents
        if unique > window:
            raise self._wrong(
                f"repetitive_handoff_min_unique_agents is {unique}, which "
                f"{window} runs (repetitive_handoff_detection_window) cannot hold; make the window larger"
            )
        # A misspelt name would bound nothing.
        tools = [tool for agent in self.agents for tool in agent.tools]
        for name in self.limits.per_tool:
            if not may_be_tool_of(tools, name):
                raise self._wrong(f"limits.per_tool names {name!r}, which is not a tool of its agents")

    def _wrong(self, why: str) -> DefinitionError:
        return DefinitionError(f"swarm {self.name!r}: {why}")

    @property
    def members(self) -> dict[str, Agent]:
        """Agents by name, in order."""
        return {agent.name: agent for agent in self.agents}

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> SwarmSpec:
        """Return the swarm as data; its hash covers its agents by their hashes.

        `cost_limited` says that a request bounds the cost, whatever the swarm's own limits are.

        Raises:
            DefinitionError: the cost is bounded, and the price of an agent's model is not known.

        """
        # One budget bounds all agents, so each of them needs its prices.
        bounded = cost_limited or self.limits.cost_usd is not None
        specs = [agent.spec(prices=prices, today=today, cost_limited=bounded) for agent in self.agents]
        stated_otherwise = {
            "agents": tuple(self.members),
            "entry": self.entry_name,
            "member_hashes": tuple(spec.hash for spec in specs),
        }
        return SwarmSpec.model_validate({**vars(self), **stated_otherwise})
