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
"""A delay that the provider asked for is waited for in place, unless it is longer; and so is an outage, where
nobody else can answer: a blip of a second must not park every run that meets it."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one worker process."""

    circuits: Circuits = field(default_factory=Circuits)
    rates: RateLimits = field(default_factory=lambda: RateLimits({}))
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    async def admit(
        self,
        key: str,
        limits: tuple[str, ...],
        tokens: Callable[[], int] = lambda: 0,
        *,
        waits: bool = False,
        force_once: bool = False,
    ) -> Ticket:
        """Wait until the call may be made; then `circuits` must be told what became of the ticket.

        `tokens` is about what it will read; asked only if one of the `limits` counts them. With `waits`,
        nobody else could answer: then a short outage is waited for. With `force_once`, a person wants it
        tried: see `Circuits.check`.

        Raises:
            CircuitOpen: not for a while.
            Throttled: our own limits have no room for a while.

        """
        await self._passed(lambda: self.circuits.check(key, force_once=force_once), waits=waits)
        await self.rates.enter(limits, tokens)
        return await self._passed(lambda: self.circuits.enter(key, force_once=force_once), waits=waits)

    async def _passed(self, try_it: Callable[[], _Given], *, waits: bool) -> _Given:
        left = min(PATIENCE, self.circuits.first_wait * 1.5).total_seconds() if waits else 0.0
        asked_for = PATIENCE.total_seconds()
        while True:
            try:
                return try_it()
            except CircuitOpen as refusal:
                wait = refusal.retry_after.total_seconds()
                if wait > (asked_for if refusal.asked_for else left):
                    raise
                wait += random.random() * min(wait, 1.0)  # noqa: S311 - no secret
                left, asked_for = left - wait, asked_for - wait
                await self.sleep(wait)
