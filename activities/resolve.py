"""Resolving: from a name to the specs a run keeps."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.effects import RESOLVE_AGENT, SPEC_QUERY, Request
from perdure.errors import DefinitionError
from perdure.members import Member, resolved
from perdure.prices import PriceTable
from perdure.spec import AgentSpec, AnySpec, ModelSpec, ResolvedAgent
from perdure.wire import INVALID_REQUEST, UNKNOWN_AGENT

from .transcripts import Transcripts

_QUERY_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """The agents, swarms and graphs this worker serves."""

    members: Mapping[str, Member]
    prices: PriceTable
    search_attributes: bool = True
    providers: Collection[str] = ()
    transcripts: Transcripts | None = None
    """Where a spec that is made here is remembered."""

    @activity.defn(name=RESOLVE_AGENT)
    async def resolve_agent(self, request: Request) -> ResolvedAgent:
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

    async def _found(self, request: Request) -> ResolvedAgent:
        if request.parent is None:
            return self._own(request)
        if request.agent in self.members:
            own = self._own(request)
            if own.spec.pin == request.pin:
                return own
        return await self._pinned(request, request.parent)

    def _with_model(self, spec: AnySpec, name: str, request: Request) -> AgentSpec:
        """The spec with another model first; the rest of the chain stays behind it."""
        assert isinstance(spec, AgentSpec), "only runs of agents are given another model"
        if name.partition(":")[0] not in self.providers:
            known = ", ".join(sorted(self.providers))
            raise _invalid(f"model {name!r}: no such provider here; there are: {known}")
        price = self.prices.find(name, request.at.date())
        if price is None and request.cost_limited:
            raise _invalid(f"model {name!r}: its price is not known, and the run has a cost limit to keep")
        config = spec.models[0].config.model_copy(update={"name": name})
        others = tuple(one for one in spec.models[1:] if one.config.name != name)
        return spec.model_copy(update={"models": (ModelSpec(config=config, price=price), *others)})

    def _own(self, request: Request) -> ResolvedAgent:
        member = self.members.get(request.agent)
        if member is None:
            known = ", ".join(sorted(self.members)) or "none"
            raise ApplicationError(
                f"no agent {request.agent!r} is served here; the agents are: {known}",
                type=UNKNOWN_AGENT,
                non_retryable=True,
            )
        try:
            found = resolved(
                member, prices=self.prices, today=request.at.date(), cost_limited=request.cost_limited
            )
        except DefinitionError as error:
            raise _invalid(str(error)) from None
        if self.transcripts is not None and isinstance(found.spec, AgentSpec):
            self.transcripts.add_spec(found.spec)
        return found

    async def _pinned(self, request: Request, parent: str) -> ResolvedAgent:
        """What the parent has: another version was deployed since it began."""
        handle = activity.client().get_workflow_handle(parent)
        found: ResolvedAgent = await handle.query(
            SPEC_QUERY, request.agent, result_type=ResolvedAgent, rpc_timeout=_QUERY_TIMEOUT
        )
        return found


def _invalid(message: str) -> ApplicationError:
    return ApplicationError(message, type=INVALID_REQUEST, non_retryable=True)
