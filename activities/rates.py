"""Rate limits: calls and tokens a minute, held across all workers that share a store.

The counting is the `limits` library's (sliding windows, in memory or in Redis). Ours is what a limit
means here: calls are let in evenly over the minute, because a provider that has just come back must not be
asked by all at once; tokens are counted before the call by our estimate, and after it by what it wrote.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from perdure.errors import DefinitionError
from perdure.settings import RateLimit

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

MEMORY: Final = "memory"
_log = logging.getLogger("perdure.rates")
_SLICE: Final = 5
"""Seconds over which calls are let in evenly."""
_ALONE: Final = timedelta(seconds=30)
"""After the store has failed, it is asked again after so long."""
_PATIENCE: Final = timedelta(seconds=20)
"""A call that must wait longer gives its place up: the run is parked, and comes back."""


class Throttled(Exception):
    """There is no room for the call for about so long."""

    def __init__(self, key: str, what: str, wait: timedelta) -> None:
        self.retry_after = wait
        super().__init__(f"the rate limit of {key} ({what}) has no room: try in {wait.total_seconds():.0f} s")


@dataclass
class RateLimits:
    """Those of the settings, by provider ("anthropic"), model ("anthropic:x") or tool ("tool:search").

    `store` is "memory", each process for itself, or a URL of Redis, which all workers share.
    """

    limits: Mapping[str, RateLimit]
    store: str = MEMORY
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _limiter: "SlidingWindowCounterRateLimiter | None" = None
    _alone: "SlidingWindowCounterRateLimiter | None" = None
    _alone_until: float = 0.0

    async def enter(self, keys: tuple[str, ...], tokens: Callable[[], int]) -> None:
        """Wait until the call may be made; of the keys, each that has a limit counts it.

        Raises:
            Throttled: it would take too long.

        """
        for key in keys:
            limit = self.limits.get(key)
            if limit is None:
                continue
            if limit.calls is not None:
                await self._through(key, "calls", _evenly(limit.calls), 1)
            if limit.tokens is not None:
                await self._through(key, "tokens", _a_minute(limit.tokens), tokens())

    async def spent(self, keys: tuple[str, ...], tokens: int) -> None:
        """Count what a call has written, when it is over."""
        for key in keys:
            limit = self.limits.get(key)
            if limit is not None and limit.tokens is not None and tokens > 0:
                window = _a_minute(limit.tokens)
                await self._counted(window, key, "tokens", min(tokens, window.amount))

    async def close(self) -> None:
        """Give the store's connections back."""
        bridge = getattr(self._limiter.storage, "bridge", None) if self._limiter else None
        if bridge is not None:
            await bridge.storage.aclose()
        self._limiter = None

    async def _through(self, key: str, what: str, window: "RateLimitItem", cost: int) -> None:
        cost = min(max(cost, 1), window.amount)  # what is larger than the window passes when it is empty
        refill = cost * window.get_expiry() / window.amount
        waited = 0.0
        while not await self._counted(window, key, what, cost):
            wait = refill * (0.5 + self.chance())
            if waited + wait > _PATIENCE.total_seconds():
                raise Throttled(key, f"{what} a minute", timedelta(seconds=max(wait, 5)))
            await self.sleep(wait)
            waited += wait

    async def _counted(self, window: "RateLimitItem", key: str, what: str, cost: int) -> bool:
        """Count it, if there is room. A store that is away stops nobody's work."""
        if self._limiter is None:
            self._limiter = _limiter(self.store)
        if self.clock() < self._alone_until:
            return await self._own().hit(window, key, what, cost=cost)
        try:
            return await self._limiter.hit(window, key, what, cost=cost)
        except Exception as error:
            if self.store == MEMORY:
                raise
            _log.warning("the store of rate limits is away, this worker counts for itself: %s", error)
            self._alone_until = self.clock() + _ALONE.total_seconds()
            return await self._own().hit(window, key, what, cost=cost)

    def _own(self) -> "SlidingWindowCounterRateLimiter":
        if self._alone is None:
            self._alone = _limiter(MEMORY)
        return self._alone


def _limiter(store: str) -> "SlidingWindowCounterRateLimiter":
    try:
        from limits.aio.strategies import SlidingWindowCounterRateLimiter
        from limits.storage import storage_from_string

        if store == MEMORY:
            storage = storage_from_string("async+memory://")
        else:
            storage = storage_from_string(f"async+{store}", implementation="redispy")
    except ImportError:
        raise DefinitionError('PERDURE_RATE_LIMITS needs a library: pip install "perdure[limits]"') from None
    return SlidingWindowCounterRateLimiter(storage)


def check(limits: Mapping[str, RateLimit], store: str) -> None:
    """Find out at the start of a worker, not at its first call, that something is missing.

    Raises:
        DefinitionError: the library is not installed.

    """
    if limits:
        _limiter(store)


def _evenly(calls: int) -> "RateLimitItem":
    """So many a minute, as fewer in a shorter time."""
    from limits import RateLimitItemPerSecond

    if calls * _SLICE >= 60:
        return RateLimitItemPerSecond(calls * _SLICE // 60, _SLICE)
    return RateLimitItemPerSecond(1, 60 // calls)


def _a_minute(tokens: int) -> "RateLimitItem":
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(tokens)
