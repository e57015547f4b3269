"""The spec of an agent: everything that shapes its behaviour, as data that history can hold.

An `Agent` has functions and classes in it; its spec has none. The spec is resolved once, when a
run starts, and pinned: a deploy changes no prompt, schema, limit or price under a running agent.
"""

from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from perdure.context import SlidingWindow
from perdure.limits import Limits
from perdure.model import ModelConfig, ToolDefinition, digest
from perdure.policy import Policy
from perdure.prices import Price

OnFailure = Literal["park", "fail"]
ToolKind = Literal["function", "remote", "person"]


class RetrySpec(BaseModel):
    """Retries of one tool."""

    model_config = ConfigDict(frozen=True)

    attempts: int = 3
    initial_interval: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    maximum_interval: timedelta = timedelta(seconds=30)


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
    retry: RetrySpec = RetrySpec()
    concurrency: int | None = None
    task_queue: str | None = None
    activity: str | None = None

    @property
    def definition(self) -> ToolDefinition:
        """What the model sees of it."""
        return ToolDefinition(name=self.name, description=self.description, input_schema=self.input_schema)


class ModelSpec(BaseModel):
    """One model of the chain, with the price it had when the run started (None: unknown)."""

    model_config = ConfigDict(frozen=True)

    config: ModelConfig
    price: Price | None = None


class AgentSpec(BaseModel):
    """An agent as a run keeps it."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    name: str
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

    @cached_property
    def hash(self) -> str:
        """The spec hash: SHA-256 over everything above, prices left out (they shape no behaviour)."""
        plain = self.model_dump(mode="json", exclude={"models": {"__all__": {"price"}}})
        return digest(plain)

    @cached_property
    def pin(self) -> str:
        """Digest of all of it, prices too: by which a worker knows one run's spec from another's."""
        return digest(self.model_dump(mode="json"))

    def tool(self, name: str) -> ToolSpec | None:
        """The tool of that name."""
        return next((tool for tool in self.tools if tool.name == name), None)


class ResolvedAgent(BaseModel):
    """What resolving gives a run: its spec, and what the worker's settings say about it."""

    model_config = ConfigDict(frozen=True)

    spec: AgentSpec = Field(repr=False)
    search_attributes: bool = True
    """False where the server lets nobody register them: then the run sets none."""
