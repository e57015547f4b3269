"""Resolving: from an agent's name to the spec a run keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.agent import Agent
from perdure.effects import RESOLVE_AGENT, Request
from perdure.errors import DefinitionError
from perdure.prices import PriceTable
from perdure.spec import ResolvedAgent
from perdure.wire import INVALID_REQUEST, UNKNOWN_AGENT


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """The agents this worker serves."""

    agents: Mapping[str, Agent]
    prices: PriceTable
    search_attributes: bool = True

    @activity.defn(name=RESOLVE_AGENT)
    async def resolve_agent(self, request: Request) -> ResolvedAgent:
        """The agent's spec as of now.

        Raises:
            ApplicationError: "UnknownAgent", with the names there are; "InvalidRequest" for limits
                that cannot be kept.

        """
        agent = self.agents.get(request.agent)
        if agent is None:
            known = ", ".join(sorted(self.agents)) or "none"
            raise ApplicationError(
                f"no agent {request.agent!r} is served here; the agents are: {known}",
                type=UNKNOWN_AGENT,
                non_retryable=True,
            )
        try:
            spec = agent.spec(prices=self.prices, today=request.at.date(), cost_limited=request.cost_limited)
        except DefinitionError as error:
            raise ApplicationError(str(error), type=INVALID_REQUEST, non_retryable=True) from None
        return ResolvedAgent(spec=spec, search_attributes=self.search_attributes)
