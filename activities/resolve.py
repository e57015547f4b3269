"""Resolution: from the name of an agent, swarm or graph to the spec that a run pins.

A run keeps its spec to its end, whatever is deployed meanwhile. A child run gets the spec that its parent
pinned, even on a worker that has another version.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.errors import DefinitionError, PerdureError
from perdure.members import Member, collect_members, resolve_member
from perdure.model import Model, ModelConfig
from perdure.prices import PriceTable
from perdure.task_queues import MOST_NAMES, unserved_message
from perdure.wire.effects import ResolveRequest
from perdure.wire.names import (
    INSTRUCTIONS_FAILED,
    MCP_NOT_READY,
    RESOLVE_AGENT,
    SPEC_QUERY,
    UNKNOWN_AGENT,
    WORKFLOWS,
)
from perdure.wire.spec import AgentSpec, AnySpec, ModelSpec, ResolvedAgent

from .content.transcripts import Transcripts
from .elsewhere import log_lack, refused_here
from .instructions import InstructionFunctions
from .mcp.pin import McpPins
from .refusal import refusal

_QUERY_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """Activity `resolve_agent`, with the agents, swarms and graphs that this worker serves."""

    members: Mapping[str, Member]
    prices: PriceTable
    search_attributes: bool = True
    providers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    transcripts: Transcripts | None = None
    """Cache that gets each spec made here, for the model calls of its runs."""
    parks: bool = True
    """False: what would park a run made here ends it as failed."""
    instructions: InstructionFunctions | None = None
    """Functions that make instructions; None where no agent has any."""
    pins: McpPins | None = None
    """Tools of MCP servers; None where no agent has any."""

    @activity.defn(name=RESOLVE_AGENT)
    async def resolve_agent(self, request: ResolveRequest) -> ResolvedAgent:
        """Return the spec as this worker has it now; for a child run, as its parent pinned it.

        Raises:
            ApplicationError: "UnknownAgent", retryable, with the names that are served; "InvalidRequest" for a
                model or a limit that cannot be used.

        """
        resolved = await self._resolve(request)
        if request.model is not None:
            spec = self._with_model(resolved.spec, request.model, request)
            resolved = resolved.model_copy(update={"spec": spec})
        return resolved.model_copy(
            update={"search_attributes": self.search_attributes, "layout": request.layout}
        )

    async def _resolve(self, request: ResolveRequest) -> ResolvedAgent:
        if request.parent is None:
            try:
                return await self._resolve_anew(request)
            except ApplicationError as error:
                if self.parks or error.type not in (INSTRUCTIONS_FAILED, MCP_NOT_READY):
                    raise
                raise refusal(error.message) from None  # a test would wait for ever
        # What servers offered, or functions said, when the parent pinned it, no worker can know.
        if request.agent in self.members and not self._is_made_anew(request.agent):
            # The usual case: this worker has the pinned version, and the parent need not be queried.
            resolved = self._resolve_here(request)
            if resolved.spec.full_digest == request.spec_digest:
                self._remember(resolved)
                return resolved
        return await self._query_parent(request, request.parent)

    async def _resolve_anew(self, request: ResolveRequest) -> ResolvedAgent:
        resolved = self._resolve_here(request)
        names = [spec.name for spec in (resolved.spec, *resolved.members)]
        if self.instructions is not None and self.instructions.are_among(names):
            if request.asker is None:
                return resolved.model_copy(update={"needs_asker": True})
            resolved = await self.instructions.fill_in(resolved, request.asker)
        if self.pins is not None:
            resolved = await self.pins.pin(resolved)
        self._remember(resolved)
        return resolved

    def _is_made_anew(self, name: str) -> bool:
        """Return whether resolving the member again could give another spec than the one that was pinned."""
        names = collect_members(self.members[name])
        has_servers = self.pins is not None and self.pins.has_servers(names)
        return has_servers or (self.instructions is not None and self.instructions.are_among(names))

    def _remember(self, resolved: ResolvedAgent) -> None:
        if self.transcripts is not None and isinstance(resolved.spec, AgentSpec):
            self.transcripts.add_spec(resolved.spec)

    def _with_model(self, spec: AnySpec, name: str, request: ResolveRequest) -> AgentSpec:
        """Return the spec with the named model first; the rest of its chain stays behind it.

        Checked here, at the start of the run, so that a wrong model fails before anything is spent.
        """
        assert isinstance(spec, AgentSpec), "only runs of agents can be started with another model"
        provider = self.providers.get(name.partition(":")[0])
        if provider is None:
            known = ", ".join(sorted(self.providers))
            raise refusal(f"model {name!r}: no such provider here; there are: {known}")
        price = self.prices.find(name, request.as_of.date())
        if price is None and request.cost_limited:
            raise refusal(f"model {name!r}: its price is not known, and the run has a cost limit to keep")
        config = _config_for(spec.models[0].config, name)
        try:
            provider.check(config)
        except PerdureError as error:
            raise refusal(f"model {name!r}: {error}") from None
        fallbacks = tuple(model for model in spec.models[1:] if model.config.name != name)
        return spec.model_copy(update={"models": (ModelSpec(config=config, price=price), *fallbacks)})

    def _resolve_here(self, request: ResolveRequest) -> ResolvedAgent:
        member = self.members.get(request.agent)
        if member is None:
            raise _unknown_agent(request.agent, self.members, is_alone=not self.parks)
        try:
            resolved = resolve_member(
                member, prices=self.prices, today=request.as_of.date(), cost_limited=request.cost_limited
            )
        except DefinitionError as error:
            raise refusal(str(error)) from None
        return resolved if self.parks else _without_parking(resolved)

    async def _query_parent(self, request: ResolveRequest, parent: str) -> ResolvedAgent:
        """Return the spec that the parent pinned: another version was deployed since it began.

        Raises:
            ApplicationError: "InvalidRequest": the server names another parent, or it has another spec.

        """
        handle = activity.client().get_workflow_handle(parent, run_id=await _run_that_pinned(parent))
        resolved: ResolvedAgent = await handle.query(
            SPEC_QUERY, request.agent, result_type=ResolvedAgent, rpc_timeout=_QUERY_TIMEOUT
        )
        if resolved.spec.full_digest != request.spec_digest:
            raise refusal(
                f"run {parent!r} has pinned another {request.agent!r} than its child was started with"
            )
        return resolved


def _unknown_agent(agent: str, members: Iterable[str], *, is_alone: bool) -> ApplicationError:
    """Return the error for an agent that this worker does not serve; it names the agents of all workers met so far.

    A worker that is alone on its queue, as in a test, refuses it for good.
    """
    info = activity.info()
    details: Sequence[Any] = info.heartbeat_details
    lists = [cast("list[str]", detail) for detail in details if isinstance(detail, list)]
    earlier = [name for names in lists for name in names]
    known = sorted({*members, *earlier})
    words = unserved_message(agent, info.task_queue, known)
    if is_alone:
        return ApplicationError(words, type=UNKNOWN_AGENT, non_retryable=True)
    activity.heartbeat(known[: 2 * MOST_NAMES])
    log_lack(f"the agent {agent!r}")
    return refused_here(words, type=UNKNOWN_AGENT)


async def _run_that_pinned(parent: str) -> str:
    """Return the run id of the execution that pinned the spec: the run itself, or its parent by the server's word.

    Raises:
        ApplicationError: "InvalidRequest": the server names another parent, or one that is no run of ours.

    """
    info, client = activity.info(), activity.client()
    if parent == info.workflow_id:
        return str(info.workflow_run_id)
    own = await client.get_workflow_handle(str(info.workflow_id), run_id=info.workflow_run_id).describe()
    if own.parent_id != parent or own.parent_run_id is None:
        raise refusal(f"the spec is pinned by {parent!r}, but the parent of this run is {own.parent_id!r}")
    above = await client.get_workflow_handle(parent, run_id=own.parent_run_id).describe()
    if above.workflow_type not in WORKFLOWS:
        raise refusal(f"the spec is pinned by {parent!r}, which is a {above.workflow_type!r} and pins none")
    return own.parent_run_id


def _without_parking(resolved: ResolvedAgent) -> ResolvedAgent:
    """Return the agents with the reaction "fail" in place of "park"."""

    def change(spec: AnySpec) -> AnySpec:
        parks = isinstance(spec, AgentSpec) and spec.on_failure == "park"
        return spec.model_copy(update={"on_failure": "fail"}) if parks else spec

    members = tuple(change(member) for member in resolved.members)
    return resolved.model_copy(update={"spec": change(resolved.spec), "members": members})


def _config_for(config: ModelConfig, name: str) -> ModelConfig:
    """Return the config with another model's name.

    A model of another provider keeps only the settings that every provider understands: neither the address
    and headers of its predecessor, nor a setting that the provider may refuse.
    """
    if name.partition(":")[0] == config.provider:
        return config.model_copy(update={"name": name, "context_tokens": None})
    shared = ("max_tokens", "stop_sequences", "timeout", "read_timeout")
    values: dict[str, Any] = {setting: getattr(config, setting) for setting in shared}
    return ModelConfig(name=name, **values)
