"""Admission: circuits and rate limits, asked before every call of a model or a tool."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from .circuit import CircuitOpen, Circuits, Ticket
from .rates import RateLimits

_Admitted = TypeVar("_Admitted")

LONGEST_WAIT = timedelta(seconds=20)
"""Longest wait in place, within the activity.

For a provider's own delay always; for an outage only where no other model can answer. A blip of a second must
not park every run that meets it.
"""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Circuits and rate limits of a worker process."""

    circuits: Circuits = field(default_factory=Circuits)
    rates: RateLimits = field(default_factory=lambda: RateLimits({}))
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    async def admit(
        self,
        key: str,
        limits: tuple[str, ...],
        tokens: Callable[[], int] = lambda: 0,
        *,
        wait_out_outage: bool = False,
        force_once: bool = False,
    ) -> Ticket:
        """Wait until the call may be made, and return the ticket to record its result with.

        `tokens` estimates the input; it is called only if one of the `limits` counts tokens.
        `wait_out_outage` waits for a short outage too, where no other model can answer.
        `force_once` admits a call that a person wants tried: see `Circuits.check`.

        Raises:
            CircuitOpen: blocked by the circuit for longer than we wait here.
            Throttled: blocked by our own rate limits for longer than we wait here.

        """
        # Before the rate limits: a call that the circuit blocks must not use up their room.
        await self._wait_for_circuit(
            lambda: self.circuits.check(key, force_once=force_once), wait_out_outage=wait_out_outage
        )
        await self.rates.acquire(limits, tokens)
        # Again after them: the circuit may have opened while this call waited for room.
        return await self._wait_for_circuit(
            lambda: self.circuits.admit(key, force_once=force_once), wait_out_outage=wait_out_outage
        )

    async def _wait_for_circuit(
        self, attempt: Callable[[], _Admitted], *, wait_out_outage: bool
    ) -> _Admitted:
        """Return what `attempt` returns once the circuit admits it; the bounds are for all waits."""
        # One and a half times the first wait: time for the circuit to open once, and for its probe to return.
        outage_wait = min(LONGEST_WAIT, self.circuits.first_wait * 1.5).total_seconds()
        outage_left = outage_wait if wait_out_outage else 0.0
        provider_left = LONGEST_WAIT.total_seconds()
        while True:
            try:
                return attempt()
            except CircuitOpen as refusal:
                wait = refusal.retry_after.total_seconds()
                if wait > (provider_left if refusal.by_provider else outage_left):
                    raise
                wait += random.random() * min(wait, 1.0)  # noqa: S311 - no secret
                outage_left, provider_left = outage_left - wait, provider_left - wait
                await self.sleep(wait)
