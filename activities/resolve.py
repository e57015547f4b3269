"""Resolving: from a name to the specs a run keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.errors import DefinitionError, PerdureError
from perdure.members import Member, resolve_member
from perdure.model import Model, ModelConfig
from perdure.prices import PriceTable
from perdure.wire.effects import ResolveRequest
from perdure.wire.names import INVALID_REQUEST, RESOLVE_AGENT, SPEC_QUERY, UNKNOWN_AGENT
from perdure.wire.spec import AgentSpec, AnySpec, ModelSpec, ResolvedAgent

from .content.transcripts import Transcripts

_QUERY_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """The agents, swarms and graphs this worker serves."""

    members: Mapping[str, Member]
    prices: PriceTable
    search_attributes: bool = True
    providers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    transcripts: Transcripts | None = None
    """Where a spec that is made here is remembered."""

    @activity.defn(name=RESOLVE_AGENT)
    async def resolve_agent(self, request: ResolveRequest) -> ResolvedAgent:
        """The specs as of now; for a child of another run, as that run pinned them.

        Raises:
            ApplicationError: "UnknownAgent", with the names there are; "InvalidRequest" for limits
                that cannot be kept.

        """
        found = await self._found(request)
        if request.model is not None:
            found = found.model_copy(update={"spec": self._with_model(found.spec, request.model, request)})
        said = {"search_attributes": self.search_attributes, "layout": request.layout}
        return found.model_copy(update=said)

    async def _found(self, request: ResolveRequest) -> ResolvedAgent:
        if request.parent is None:
            return self._own(request)
        if request.agent in self.members:
            own = self._own(request)
            if own.spec.full_digest == request.spec_digest:
                return own
        return await self._pinned(request, request.parent)

    def _with_model(self, spec: AnySpec, name: str, request: ResolveRequest) -> AgentSpec:
        """The spec with another model first; the rest of the chain stays behind it."""
        assert isinstance(spec, AgentSpec), "only runs of agents are given another model"
        provider = self.providers.get(name.partition(":")[0])
        if provider is None:
            known = ", ".join(sorted(self.providers))
            raise _invalid(f"model {name!r}: no such provider here; there are: {known}")
        price = self.prices.find(name, request.as_of.date())
        if price is None and request.cost_limited:
            raise _invalid(f"model {name!r}: its price is not known, and the run has a cost limit to keep")
        config = _renamed(spec.models[0].config, name)
        try:
            provider.check(config)
        except PerdureError as error:
            raise _invalid(f"model {name!r}: {error}") from None
        others = tuple(one for one in spec.models[1:] if one.config.name != name)
        return spec.model_copy(update={"models": (ModelSpec(config=config, price=price), *others)})

    def _own(self, request: ResolveRequest) -> ResolvedAgent:
        member = self.members.get(request.agent)
        if member is None:
            known = ", ".join(sorted(self.members)) or "none"
            raise ApplicationError(
                f"no agent {request.agent!r} is served here; the agents are: {known}",
                type=UNKNOWN_AGENT,
                non_retryable=True,
            )
        try:
            found = resolve_member(
                member, prices=self.prices, today=request.as_of.date(), cost_limited=request.cost_limited
            )
        except DefinitionError as error:
            raise _invalid(str(error)) from None
        if self.transcripts is not None and isinstance(found.spec, AgentSpec):
            self.transcripts.add_spec(found.spec)
        return found

    async def _pinned(self, request: ResolveRequest, parent: str) -> ResolvedAgent:
        """What the parent has: another version was deployed since it began."""
        handle = activity.client().get_workflow_handle(parent)
        found: ResolvedAgent = await handle.query(
            SPEC_QUERY, request.agent, result_type=ResolvedAgent, rpc_timeout=_QUERY_TIMEOUT
        )
        return found


def _renamed(config: ModelConfig, name: str) -> ModelConfig:
    """The config for another model. Another provider gets only what every provider understands: neither its
    predecessor's address nor its headers, and no setting that it may not take.
    """
    if name.partition(":")[0] == config.provider:
        return config.model_copy(update={"name": name})
    shared = ("max_tokens", "stop_sequences", "timeout", "read_timeout")
    kept: dict[str, Any] = {one: getattr(config, one) for one in shared}
    return ModelConfig(name=name, **kept)


def _invalid(message: str) -> ApplicationError:
    return ApplicationError(message, type=INVALID_REQUEST, non_retryable=True)
