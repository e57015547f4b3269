"""Edited arguments: read as the function on this worker reads them, before a person's edit is taken."""

from collections.abc import Mapping
from dataclasses import dataclass

from temporalio import activity

from perdure.agent import Agent
from perdure.wire.effects import BindArguments, BoundArguments
from perdure.wire.names import BIND_ARGUMENTS

from .content.redact import redact_and_cut
from .content.reply import bind_arguments


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Activity `bind_arguments`, with the agents that this worker serves."""

    agents: Mapping[str, Agent]

    @activity.defn(name=BIND_ARGUMENTS)
    async def bind_arguments(self, request: BindArguments) -> BoundArguments:
        """Return the arguments as the function reads them, or the problem with them."""
        agent = self.agents.get(request.agent)
        try:
            bound = bind_arguments(
                agent, request.tool, request.arguments, request.input_schema, request.resource
            )
        except ValueError as error:
            return BoundArguments(problem=redact_and_cut(str(error), 1000))
        return BoundArguments(arguments=bound)
