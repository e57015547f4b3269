"""Resources of a running worker: the lifespans of its files, entered once, and their values by member."""

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from perdure.errors import DefinitionError
from perdure.resources import Lifespan, LifespansByMember

from .content.redact import redact_error

_log = logging.getLogger("perdure.worker")


class WorkerResources:
    """Values of lifespans, by the name of the agent, swarm or graph that they are for.

    Args:
        given: a lifespan for all members, lifespans by member, or a value that is used as it is.
        members: names of the members.

    """

    def __init__(self, given: Any = None, members: Iterable[str] = ()) -> None:
        self._value: Any = None
        self._lifespans: dict[str, Lifespan[Any]] = {}
        if isinstance(given, LifespansByMember):
            self._lifespans = dict(given.lifespans)
        elif isinstance(given, Lifespan):
            self._lifespans = {name: given for name in members}  # noqa: C420 - pyright knows its type
        else:
            self._value = given
        self._entered: dict[int, Any] = {}
        self._users = 0
        self._stack = AsyncExitStack()

    def of(self, member: str) -> Any:
        """Return the resources of the member's file; None where it has none."""
        lifespan = self._lifespans.get(member)
        return self._value if lifespan is None else self._entered[id(lifespan)]

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[None]:
        """Hold the resources while the block runs. Several workers of a plugin share them.

        Raises:
            DefinitionError: a lifespan cannot be entered; the cause is the user's own error.

        """
        self._users += 1
        try:
            if self._users == 1:
                await self._enter()
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._close()

    async def _enter(self) -> None:
        for lifespan in {id(each): each for each in self._lifespans.values()}.values():
            try:
                # A TypeError if it makes something else.
                self._entered[id(lifespan)] = await self._stack.enter_async_context(lifespan.make())
            except Exception as error:
                raise DefinitionError(
                    f"lifespan {lifespan.name}: {type(error).__name__}: {redact_error(error, 1000)}"
                ) from error

    async def _close(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        self._entered.clear()
        try:
            await stack.aclose()
        except Exception:
            _log.exception("the resources of the worker were not closed without an error")
