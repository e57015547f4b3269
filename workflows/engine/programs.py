"""Registry of programs by the kind of their spec. Nothing else in the engine asks for a kind."""

from collections.abc import Callable
from typing import Any, Final, cast

from perdure.graph import GraphCode
from perdure.wire.spec import AgentSpec, AnySpec, GraphSpec, SwarmSpec

from .agent import AgentProgram
from .graph import GraphScheduler
from .program import Program
from .swarm import SwarmScheduler
from .team import TeamProgram

NO_CODE: Final = GraphCode()


def _agent(spec: AnySpec, code: GraphCode) -> Program[Any]:
    return AgentProgram(cast("AgentSpec", spec))


def _swarm(spec: AnySpec, code: GraphCode) -> Program[Any]:
    return TeamProgram(spec, SwarmScheduler(cast("SwarmSpec", spec)))


def _graph(spec: AnySpec, code: GraphCode) -> Program[Any]:
    return TeamProgram(spec, GraphScheduler(cast("GraphSpec", spec), code))


_BY_KIND: Final[dict[str, Callable[[AnySpec, GraphCode], Program[Any]]]] = {
    "agent": _agent,
    "swarm": _swarm,
    "graph": _graph,
}


def program_for(spec: AnySpec, code: GraphCode = NO_CODE) -> Program[Any]:
    """Return the program of a spec. `code`: the functions that the spec names, if it names any."""
    return _BY_KIND[spec.kind](spec, code)
