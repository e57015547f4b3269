"""Swarm: agents that pass one task among themselves, until one of them answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import ClassVar, Final, Literal

from perdure.agent import _NAME, Agent
from perdure.errors import DefinitionError
from perdure.limits import SwarmLimits
from perdure.members import collect_members
from perdure.model import ToolDefinition
from perdure.prices import PriceTable
from perdure.wire.names import HANDOFF
from perdure.wire.spec import SwarmSpec

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
"""What the model sees of it. `agent_name` is checked against the peers of the run, not here."""


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """A swarm. Raises DefinitionError, when it is made, for anything that could not run.

    The entry agent gets the task. Whoever has it answers, which ends the swarm, or hands it on.
    """

    member_kind: ClassVar[Literal["swarm"]] = "swarm"

    name: str
    agents: Sequence[Agent]
    """Their order is the one in which they are shown to each other."""
    entry: Agent | str | None = None
    """Who gets the task; None: the first."""
    limits: SwarmLimits = field(default_factory=SwarmLimits)
    description: str = ""
    """For agents and graphs that call it: what it is good for."""
    entry_name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DefinitionError(
                f"swarm name {self.name!r}: use letters, digits, '_', '-' and '.', starting with a letter"
            )
        object.__setattr__(self, "agents", self._check_agents())
        object.__setattr__(self, "entry_name", self._check_entry())
        self._check_limits()
        collect_members(self)

    def _check_agents(self) -> tuple[Agent, ...]:
        if not isinstance(self.agents, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(f"agents must be a list, not {self.agents!r}")
        agents = tuple(self.agents)
        if not agents:
            raise self._wrong("it has no agents; give it at least one")
        seen: set[str] = set()
        for agent in agents:
            if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise self._wrong(f"{agent!r} is no Agent")
            if agent.name in seen:
                raise self._wrong(f"two agents are called {agent.name!r}; rename one, or give it once")
            seen.add(agent.name)
        return agents

    def _check_entry(self) -> str:
        entry = self.agents[0] if self.entry is None else self.entry
        if isinstance(entry, str) and entry in self.members:
            return entry
        if isinstance(entry, Agent) and entry in self.agents:
            return entry.name
        shown = entry.name if isinstance(entry, Agent) else entry
        raise self._wrong(f"entry {shown!r} is none of its agents ({', '.join(self.members)})")

    def _check_limits(self) -> None:
        if not isinstance(self.limits, SwarmLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(f"limits must be SwarmLimits, not {self.limits!r}")
        window = self.limits.repetitive_handoff_detection_window
        unique = self.limits.repetitive_handoff_min_unique_agents
        if unique > window:
            raise self._wrong(
                f"repetitive_handoff_min_unique_agents is {unique}, which "
                f"the latest {window} runs (repetitive_handoff_detection_window) can never hold; "
                "make the window larger"
            )
        tools = {tool.name for agent in self.agents for tool in agent.tools}
        for name in self.limits.per_tool:
            if name not in tools:
                raise self._wrong(f"limits.per_tool names {name!r}, which is no tool of its agents")

    def _wrong(self, why: str) -> DefinitionError:
        return DefinitionError(f"swarm {self.name!r}: {why}")

    @property
    def members(self) -> dict[str, Agent]:
        """Its agents by name, in order."""
        return {agent.name: agent for agent in self.agents}

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> SwarmSpec:
        """The swarm as data; its hash covers its agents by theirs.

        With `cost_limited`, the cost will be bounded even if the swarm's own limits do not say so.

        Raises:
            DefinitionError: a cost limit, but an agent with a model whose price is not known.

        """
        bounded = cost_limited or self.limits.cost_usd is not None
        specs = [agent.spec(prices=prices, today=today, cost_limited=bounded) for agent in self.agents]
        stated_otherwise = {
            "agents": tuple(self.members),
            "entry": self.entry_name,
            "member_hashes": tuple(spec.hash for spec in specs),
        }
        return SwarmSpec.model_validate({**vars(self), **stated_otherwise})
