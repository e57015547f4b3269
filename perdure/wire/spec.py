"""Specs of agents, swarms, graphs and patterns: everything that shapes their behaviour, as data that history can hold.

An `Agent` holds functions and classes; its spec holds none. A run resolves its spec once, when it starts, and
pins it: a deploy changes no prompt, schema, limit or price under a running agent.

A new field is left out of the JSON while it holds its default: so the digests of specs that do not use it
stay the same.
"""

from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure.context import ContextStrategy, SlidingWindow
from perdure.fallbacks import ToolFallback
from perdure.hooks import HookPoint
from perdure.limits import GraphLimits, Limits, PatternLimits, SwarmLimits
from perdure.messages import is_empty
from perdure.model import ModelConfig, ToolDefinition, digest
from perdure.policy import Policy
from perdure.prices import Price
from perdure.retries import ToolRetry

OnFailure = Literal["park", "fail", "answer"]
ToolKind = Literal["function", "remote", "person", "agent", "mcp"]
Effect = Literal["read", "write"]
Collect = Literal["all", "completion"]
"""Return of answers of agents called as tools: all of a step together, or each on its completion."""
SwarmMemory = Literal["own", "shared", "none"]
"""Memory of a swarm's agent: its own earlier visits, those of all agents, or nothing."""
NodeKind = Literal["agent", "swarm", "graph", "pattern", "function"]
OnError = Literal["fail", "skip"]


def is_none(value: Any) -> bool:
    """Check whether a field is unset: it is left out of the JSON, for every run writes its spec once."""
    return value is None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class McpSource(_Frozen):
    """Origin of a tool of an MCP server: nothing of the server's address, headers or environment."""

    server: str
    tool: str
    """Name of the tool on the server, which may differ from the name that the model sees."""
    digest: str
    """Digest of all that the server said of the tool when it was pinned."""
    hints: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    """Annotations that the server claims, such as "read_only". Nothing here trusts them."""
    repeatable: bool = Field(default=False, exclude_if=is_empty)
    """True: a write that may have happened is tried again."""


class ToolSpec(_Frozen):
    """Tool without its function."""

    kind: ToolKind
    name: str
    description: str
    input_schema: dict[str, Any]
    effect: Literal["read", "write"] = "read"
    approval: bool = False
    resource: str | None = Field(default=None, exclude_if=is_none)
    timeout: timedelta = timedelta(minutes=1)
    heartbeat: timedelta | None = Field(default=None, exclude_if=is_none)
    retry: ToolRetry = ToolRetry()
    concurrency: int | None = Field(default=None, exclude_if=is_none)
    task_queue: str | None = Field(default=None, exclude_if=is_none)
    activity: str | None = Field(default=None, exclude_if=is_none)
    agent: str | None = Field(default=None, exclude_if=is_empty)
    """Of kind "agent": name of the member of the run that answers the call."""
    agent_hash: str | None = Field(default=None, exclude_if=is_empty)
    collect: Collect = Field(default="all", exclude_if=lambda v: v == "all")
    deadline: timedelta | None = Field(default=None, exclude_if=is_empty)
    """Of kind "agent": wall clock of one run of that member."""
    fallback: ToolFallback | None = Field(default=None, exclude_if=is_empty)
    """Stand-in that answers once the tool's attempts are used up."""
    polls: bool = Field(default=False, exclude_if=is_empty)
    """True: the same call may come again and again, and `Limits.identical_calls` does not count it."""
    mcp: McpSource | None = Field(default=None, exclude_if=is_none)
    """Of kind "mcp": the server's tool that answers the call."""

    @property
    def definition(self) -> ToolDefinition:
        """Definition of the tool for a model."""
        return ToolDefinition(name=self.name, description=self.description, input_schema=self.input_schema)


class ModelSpec(_Frozen):
    """Model of the chain, with its price when the run started (None: unknown)."""

    config: ModelConfig
    # Pinned with the run: a new price table must not change what a budget has already allowed.
    price: Price | None = None
    on: tuple[str, ...] | None = Field(default=None, exclude_if=lambda v: v is None)
    """Error kinds on which this fallback is taken, see `perdure.fallbacks.Fallback`."""
    sticky: bool = Field(default=True, exclude_if=lambda v: v is True)
    least_cost_left_microusd: int | None = Field(default=None, exclude_if=is_empty)
    instructions: str | None = Field(default=None, exclude_if=is_none)
    """Instructions in place of the agent's, None for those."""


class _MemberSpec(_Frozen):
    """Fields of every spec that a run can be made from."""

    version: Literal[1] = 1
    name: str
    description: str = Field(default="", exclude_if=is_empty)
    """Purpose, for other agents."""

    @cached_property
    def full_digest(self) -> str:
        """SHA-256 over all fields, prices too: the key under which workers keep specs of runs."""
        return digest(self.model_dump(mode="json"))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the fields that shape behaviour."""
        return self.full_digest


class AgentSpec(_MemberSpec):
    """Agent as a run keeps it."""

    kind: Literal["agent"] = "agent"
    instructions: str
    instructions_by: str | None = Field(default=None, exclude_if=is_none)
    """Name of the function that has made them, if one has."""
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    """Chain of models: the agent's model, then its fallbacks."""
    tools: tuple[ToolSpec, ...] = ()
    mcp_servers: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    """MCP servers whose tools are among `tools` once a worker has resolved the run."""
    limits: Limits = Limits()
    policy: Policy | None = Field(default=None, exclude_if=is_none)
    context: ContextStrategy = SlidingWindow()
    output_schema: dict[str, Any] | None = Field(default=None, exclude_if=is_none)
    wraps_output: bool = Field(default=False, exclude_if=is_empty)
    """True: the output is the field `value` of the object that the schema describes."""
    output_name: str | None = Field(default=None, exclude_if=is_none)
    output_repairs: int = 2
    tool_concurrency: int = 8
    result_preview_bytes: int = 16_384
    on_failure: OnFailure = "park"
    planning: bool = Field(default=False, exclude_if=is_empty)
    """True: the model gets the tool by which it keeps a plan."""
    fallback_message: str | None = Field(default=None, exclude_if=is_empty)
    """Answer of a run that must end before its model said anything."""
    hooks: tuple[HookPoint, ...] = Field(default=(), exclude_if=is_empty)
    """Points at which the worker's hooks are asked."""
    summary_model: ModelSpec | None = Field(default=None, exclude_if=is_none)
    """Model that writes summaries for the context strategy; None: the model in use."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all fields except prices, which shape no behaviour."""
        return digest(
            self.model_dump(
                mode="json", exclude={"models": {"__all__": {"price"}}, "summary_model": {"price"}}
            )
        )

    def tool(self, name: str) -> ToolSpec | None:
        """Return the tool of that name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


class _TeamSpec(_MemberSpec):
    """Fields of every spec whose members are run by it; its hash covers them by theirs."""

    # A changed member makes this another team, though its own fields are the same.
    member_hashes: tuple[str, ...] = ()


class SwarmSpec(_TeamSpec):
    """Swarm as a run keeps it. Its agents are members of the run, by name."""

    kind: Literal["swarm"] = "swarm"
    agents: tuple[str, ...]
    """Names of its agents, in the order in which they were given."""
    entry: str
    memory: SwarmMemory = Field(default="own", exclude_if=lambda v: v == "own")
    limits: SwarmLimits = SwarmLimits()


class NodeSpec(_Frozen):
    """Node of a graph without its functions."""

    name: str
    kind: NodeKind
    member: str | None = None
    """Name of the agent, swarm or graph that it runs; None for a function."""
    join: Literal["all", "any"] | int = "all"
    """Number of incoming edges that must deliver before the node runs."""
    on_error: OnError = "fail"
    retries: int = 0
    """Number of new runs after a failed one, before `on_error` applies."""
    timeout: timedelta | None = None
    """Wall clock of one run of the node."""
    input: str | None = None
    """Name of the function that builds its input; None: the default input."""
    description: str = ""


class EdgeSpec(_Frozen):
    """Edge of a graph without its function."""

    source: str
    target: str
    when: str | None = None
    """Name of the condition; None: the edge always delivers."""


class GraphSpec(_TeamSpec):
    """Graph as a run keeps it. Its nodes run members of the run, by name."""

    kind: Literal["graph"] = "graph"
    nodes: tuple[NodeSpec, ...]
    edges: tuple[EdgeSpec, ...] = ()
    entries: tuple[str, ...]
    limits: GraphLimits = GraphLimits()
    concurrency: int = 8
    """Most nodes that run at the same time."""
    reset_on_revisit: bool = False
    """False: an agent that is visited again keeps the messages of its earlier visits."""
    siblings: Literal["cancel", "finish"] = "cancel"
    """Treatment of nodes in flight when another node fails the graph."""

    def node(self, name: str) -> NodeSpec:
        """Return the node of that name.

        Raises:
            StopIteration: no node has that name.

        """
        return next(node for node in self.nodes if node.name == name)


class PatternSpec(_TeamSpec):
    """Pattern as a run keeps it. Its scheduler is code, and found by the pattern's kind."""

    kind: Literal["pattern"] = "pattern"
    pattern: str
    """Kind of the pattern, such as "debate": the name of its scheduler among workers."""
    members: dict[str, NodeKind]
    """Kind of each member, by name."""
    settings: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Everything else that the scheduler reads."""
    limits: PatternLimits = PatternLimits()


AnySpec = Annotated[AgentSpec | SwarmSpec | GraphSpec | PatternSpec, Field(discriminator="kind")]


class ResolvedAgent(_Frozen):
    """Result of resolving a run: its spec, the specs of its members, and settings of its worker."""

    spec: AnySpec = Field(repr=False)
    members: tuple[AnySpec, ...] = Field(default=(), repr=False, exclude_if=is_empty)
    """Specs of all that the run may start, directly or through its children: pinned together with it."""
    needs_asker: bool = Field(default=False, exclude_if=is_empty)
    """True: instructions are made for a user, and are not yet in the specs. The run asks again, with the `Asker`."""
    search_attributes: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False: the run sets no search attributes, because the server lets nobody register them."""
    layout: int = 1
    """Layout of the run's history. 1 is the only layout yet; the number is the means for later changes. The value
    of the request comes back here, so that history holds it and every worker replays the same layout."""
