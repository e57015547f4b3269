"""The spec of an agent: everything that shapes its behaviour, as data that history can hold.

An `Agent` has functions and classes in it; its spec has none. The spec is resolved once, when a
run starts, and pinned: a deploy changes no prompt, schema, limit or price under a running agent.

A field that is added is left out of the JSON while it has its default: the digests of specs that
do not use it stay what they were.
"""

from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from perdure.context import SlidingWindow
from perdure.fallbacks import ToolFallback
from perdure.limits import GraphLimits, Limits, SwarmLimits
from perdure.messages import is_empty
from perdure.model import ModelConfig, ToolDefinition, digest
from perdure.policy import Policy
from perdure.prices import Price
from perdure.retries import ToolRetry

OnFailure = Literal["park", "fail", "answer"]
ToolKind = Literal["function", "remote", "person", "agent"]
Collect = Literal["all", "completion"]
"""How answers of agents called as tools come back: all of a step together, or each when it is there."""
NodeKind = Literal["agent", "swarm", "graph", "function"]
OnError = Literal["fail", "skip"]


class ToolSpec(BaseModel):
    """A tool without its function."""

    model_config = ConfigDict(frozen=True)

    kind: ToolKind
    name: str
    description: str
    input_schema: dict[str, Any]
    effect: Literal["read", "write"] = "read"
    approval: bool = False
    resource: str | None = None
    timeout: timedelta = timedelta(minutes=1)
    heartbeat: timedelta | None = None
    retry: ToolRetry = ToolRetry()
    concurrency: int | None = None
    task_queue: str | None = None
    activity: str | None = None
    agent: str | None = Field(default=None, exclude_if=is_empty)
    """Kind "agent": who answers the call, by name; a member of the run."""
    agent_hash: str | None = Field(default=None, exclude_if=is_empty)
    collect: Collect = Field(default="all", exclude_if=lambda v: v == "all")
    deadline: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Wall clock of one run of the agent that answers."""
    fallback: ToolFallback | None = Field(default=None, exclude_if=is_empty)
    """What answers when the tool has failed for good."""

    @property
    def definition(self) -> ToolDefinition:
        """What the model sees of it."""
        return ToolDefinition(name=self.name, description=self.description, input_schema=self.input_schema)


class ModelSpec(BaseModel):
    """One model of the chain, with the price it had when the run started (None: unknown)."""

    model_config = ConfigDict(frozen=True)

    config: ModelConfig
    price: Price | None = None
    on: tuple[str, ...] | None = Field(default=None, exclude_if=lambda v: v is None)
    """A fallback's conditions: see `perdure.agent.Fallback`."""
    sticky: bool = Field(default=True, exclude_if=lambda v: v is True)
    least_cost_left_microusd: int | None = Field(default=None, exclude_if=is_empty)


class AgentSpec(BaseModel):
    """An agent as a run keeps it."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    kind: Literal["agent"] = Field(default="agent", exclude=True)
    name: str
    description: str = Field(default="", exclude_if=is_empty)
    """For other agents: what it is good for."""
    instructions: str
    models: tuple[ModelSpec, ...]
    """The model, then its fallbacks."""
    tools: tuple[ToolSpec, ...] = ()
    limits: Limits = Limits()
    policy: Policy | None = None
    context: SlidingWindow = SlidingWindow()
    output_schema: dict[str, Any] | None = None
    output_name: str | None = None
    output_repairs: int = 2
    tool_concurrency: int = 8
    result_preview_bytes: int = 16_384
    on_failure: OnFailure = "park"
    planning: bool = Field(default=False, exclude_if=is_empty)
    """The model gets a tool by which it keeps a plan."""
    fallback_message: str | None = Field(default=None, exclude_if=is_empty)
    """What the run answers when it must end and nothing was said."""

    @cached_property
    def hash(self) -> str:
        """The spec hash: SHA-256 over everything above, prices left out (they shape no behaviour)."""
        plain = self.model_dump(mode="json", exclude={"models": {"__all__": {"price"}}})
        return digest(plain)

    @cached_property
    def full_digest(self) -> str:
        """Digest of all of it, prices too: by which a worker knows one run's spec from another's."""
        return digest(self.model_dump(mode="json"))

    def tool(self, name: str) -> ToolSpec | None:
        """The tool of that name."""
        return next((tool for tool in self.tools if tool.name == name), None)


class SwarmSpec(BaseModel):
    """A swarm as a run keeps it. Its agents are members of the run, by name."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    kind: Literal["swarm"] = "swarm"
    name: str
    description: str = ""
    agents: tuple[str, ...]
    """In the order they were given."""
    entry: str
    limits: SwarmLimits = SwarmLimits()
    member_hashes: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """The spec hash: covers the members by theirs."""
        return digest(self.model_dump(mode="json"))

    @property
    def full_digest(self) -> str:
        """As for agents; a swarm has no prices of its own."""
        return self.hash


class NodeSpec(BaseModel):
    """A node of a graph without its functions."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: NodeKind
    member: str | None = None
    """Name of the agent, swarm or graph it runs; None for a function."""
    join: Literal["all", "any"] | int = "all"
    """How many of the incoming edges must have brought something before it runs."""
    on_error: OnError = "fail"
    retries: int = 0
    """How often a run of it that failed is started again before `on_error` counts."""
    timeout: timedelta | None = None
    """Wall clock of one run of it."""
    input: str | None = None
    """Name of the function that builds its input, in place of the default."""
    description: str = ""


class EdgeSpec(BaseModel):
    """An edge of a graph without its function."""

    model_config = ConfigDict(frozen=True)

    source: str
    target: str
    when: str | None = None
    """Name of the condition; None: always."""


class GraphSpec(BaseModel):
    """A graph as a run keeps it. What its nodes run are members of the run, by name."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    kind: Literal["graph"] = "graph"
    name: str
    description: str = ""
    nodes: tuple[NodeSpec, ...]
    edges: tuple[EdgeSpec, ...] = ()
    entries: tuple[str, ...]
    limits: GraphLimits = GraphLimits()
    concurrency: int = 8
    """Most nodes running at once."""
    reset_on_revisit: bool = False
    """False: an agent that is visited again remembers what it was asked and answered before."""
    siblings: Literal["cancel", "finish"] = "cancel"
    """What becomes of nodes in flight when one fails the graph."""
    member_hashes: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """The spec hash: covers the members by theirs."""
        return digest(self.model_dump(mode="json"))

    @property
    def full_digest(self) -> str:
        """As for agents; a graph has no prices of its own."""
        return self.hash

    def node(self, name: str) -> NodeSpec:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)


def _kind(spec: Any) -> str:
    """Of a spec, or of its JSON: 0.1 wrote none, and knew agents only."""
    if isinstance(spec, dict):
        return str(cast("dict[str, Any]", spec).get("kind", "agent"))
    return str(getattr(spec, "kind", "agent"))


AnySpec = Annotated[
    Annotated[AgentSpec, Tag("agent")]
    | Annotated[SwarmSpec, Tag("swarm")]
    | Annotated[GraphSpec, Tag("graph")],
    Discriminator(_kind),
]


class ResolvedAgent(BaseModel):
    """What resolving gives a run: its spec, and what the worker's settings say about it."""

    model_config = ConfigDict(frozen=True)

    spec: AnySpec = Field(repr=False)
    members: tuple[AnySpec, ...] = Field(default=(), repr=False, exclude_if=is_empty)
    """Specs of all that the run may start, directly or through others: pinned with it."""
    search_attributes: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False where the server lets nobody register them: then the run sets none."""
    layout: int = 1
    """How the run writes its history: 1 as version 0.1.0 did; 2 sets search attributes less often. It is what
    the run's worker asked for, given back: so history says it, and every worker replays the same."""
