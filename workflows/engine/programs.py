"""Registry of programs by the kind of their spec. Nothing else in the engine asks for a kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from perdure.graph import GraphCode
from perdure.scheduling import Scheduler
from perdure.wire.spec import AgentSpec, AnySpec, GraphSpec, PatternSpec, SwarmSpec

from .agent import AgentProgram
from .graph import GraphScheduler, MissingCode
from .pattern import bounded_scheduler
from .program import Program
from .swarm import SwarmScheduler
from .team import TeamProgram


def no_functions(_: GraphSpec) -> GraphCode:
    """Return no functions."""
    return GraphCode()


def no_scheduler(spec: PatternSpec) -> Scheduler[Any]:
    """Raise MissingCode."""
    raise MissingCode(
        f"no pattern {spec.pattern!r} is served here, and {spec.name!r} needs its scheduler; serve a pattern of that "
        "kind with this worker"
    )


@dataclass(frozen=True, kw_only=True)
class UserCode:
    """Access to the code of users that specs name. Of an agent or a swarm there is none."""

    functions: Callable[[GraphSpec], GraphCode] = no_functions
    scheduler: Callable[[PatternSpec], Scheduler[Any]] = no_scheduler


NO_CODE: Final = UserCode()


# The key of the registry is the spec's discriminator, so each cast below is true.
def _agent(spec: AnySpec, code: UserCode) -> Program[Any]:
    return AgentProgram(cast("AgentSpec", spec))


def _swarm(spec: AnySpec, code: UserCode) -> Program[Any]:
    return TeamProgram(spec, SwarmScheduler(cast("SwarmSpec", spec)))


def _graph(spec: AnySpec, code: UserCode) -> Program[Any]:
    graph = cast("GraphSpec", spec)
    return TeamProgram(spec, GraphScheduler(graph, code.functions(graph)))


def _pattern(spec: AnySpec, code: UserCode) -> Program[Any]:
    pattern = cast("PatternSpec", spec)
    return TeamProgram(spec, bounded_scheduler(pattern, code.scheduler(pattern)))


# The one place that knows all kinds. A new kind of spec is a line here, and `AnySpec` in the wire.
_BY_KIND: Final[dict[str, Callable[[AnySpec, UserCode], Program[Any]]]] = {
    "agent": _agent,
    "swarm": _swarm,
    "graph": _graph,
    "pattern": _pattern,
}


def program_for(spec: AnySpec, code: UserCode = NO_CODE) -> Program[Any]:
    """Return the program of a spec, with the user's code that it names."""
    return _BY_KIND[spec.kind](spec, code)
