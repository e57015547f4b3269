"""Resources of a worker: what its tools, hooks and functions share while it runs, such as a pool of connections.

    @lifespan
    async def resources() -> AsyncGenerator[Resources]:
        async with asyncpg.create_pool(DSN) as pool:
            yield Resources(pool)

It stands in the agent's file. The worker enters it once before it takes work, and leaves it when its work has ended.
The value never leaves the worker: no history, log or model sees it.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

from typing_extensions import TypeVar

from perdure.errors import DefinitionError

Resources = TypeVar("Resources", covariant=True, default=Any)  # noqa: PLC0105 - people read it in their editors
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False)
class Lifespan(Generic[Resources]):
    """Context in which a worker runs. Made by `lifespan`."""

    make: Callable[[], AbstractAsyncContextManager[Resources]] = field(repr=False)
    name: str


@dataclass(frozen=True)
class LifespansByMember:
    """Lifespans of a worker that serves several files, by the agents, swarms and graphs of each."""

    lifespans: Mapping[str, Lifespan[Any]]


def lifespan(
    make: Callable[[], AsyncGenerator[_R] | AsyncIterator[_R] | AbstractAsyncContextManager[_R]],
) -> Lifespan[_R]:
    """Make the lifespan of a worker, of an async generator function that yields once, or of a context manager's maker.

    Raises:
        DefinitionError: it is no such function, or has parameters.

    """
    function: Any = make
    name = getattr(function, "__name__", repr(function))
    if not callable(function) or isinstance(function, AbstractAsyncContextManager):
        raise DefinitionError(
            f"lifespan({function!r}): give the function that makes the context, and not the context itself"
        )
    if inspect.iscoroutinefunction(function):
        raise DefinitionError(
            f"lifespan({name}): it must yield the resources once, so that they can be closed"
        )
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if needed:
        raise DefinitionError(
            f"lifespan({name}): the worker calls it without arguments, and it needs {needed[0]!r}"
        )
    maker: Any = asynccontextmanager(make) if inspect.isasyncgenfunction(make) else make
    return Lifespan(maker, name)
