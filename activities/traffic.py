"""Who may call now: circuits and rate limits, asked before every call of a model or a tool."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from .circuit import CircuitOpen, Circuits, Ticket
from .rates import RateLimits

_Given = TypeVar("_Given")
PATIENCE = timedelta(seconds=20)
"""A delay that the provider asked for is waited for in place, unless it is longer."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one worker process."""

    circuits: Circuits = field(default_factory=Circuits)
    rates: RateLimits = field(default_factory=lambda: RateLimits({}))
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    async def admit(self, key: str, limits: tuple[str, ...], tokens: Callable[[], int] = lambda: 0) -> Ticket:
        """Wait until the call may be made; then `circuits` must be told what became of the ticket.

        `tokens` is about what it will read; asked only if one of the `limits` counts them.

        Raises:
            CircuitOpen: not for a while.
            Throttled: our own limits have no room for a while.

        """
        await self._passed(lambda: self.circuits.check(key))
        await self.rates.enter(limits, tokens)
        return await self._passed(lambda: self.circuits.enter(key))

    async def _passed(self, try_it: Callable[[], _Given]) -> _Given:
        left = PATIENCE.total_seconds()
        while True:
            try:
                return try_it()
            except CircuitOpen as refusal:
                wait = refusal.retry_after.total_seconds()
                if not refusal.asked_for or wait > left:
                    raise
                wait += random.random() * min(wait, 1.0)  # noqa: S311 - no secret
                left -= wait
                await self.sleep(wait)
