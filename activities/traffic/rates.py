"""Rate limits: calls and tokens a minute, shared by all workers that share a store.

The `limits` library counts (sliding windows, in memory or in Redis). This module says what a limit means.
Calls are admitted evenly over the minute, because a provider that has just come back must not get them all
at once. Input tokens are counted before the call, by our estimate; output tokens after it, as the provider
counted them.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from perdure.errors import DefinitionError
from perdure.settings import RateLimit

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

MEMORY: Final = "memory"
_log = logging.getLogger("perdure.rates")
_MISSING: Final = 'PERDURE_RATE_LIMITS needs a library: pip install "perdure[limits]"'

_WINDOW_SECONDS: Final = 5
"""Window within which calls may come together, for a limit of 240 calls a minute or more."""
_ONE_SECOND_WINDOW_FROM: Final = 1200
"""Calls a minute from which on the window is a single second."""
_STORE_RETRY: Final = timedelta(seconds=30)
"""Time for which a worker counts for itself after the store has failed."""
_STORE_TIMEOUT_SECONDS: Final = 2.0
"""Timeout of the store: a hanging store must not delay calls."""
_LONGEST_WAIT: Final = timedelta(seconds=20)
"""Longest wait in place. A call that must wait longer parks its run, which retries later."""
_SHORTEST_RETRY_SECONDS: Final = 5.0


class Throttled(Exception):
    """Refusal of a call for which a rate limit has no room within the longest wait."""

    def __init__(self, key: str, what: str, wait: timedelta) -> None:
        self.retry_after = wait
        super().__init__(f"the rate limit of {key} ({what}) has no room: try in {wait.total_seconds():.0f} s")


class _Charge(NamedTuple):
    """Charge of a call against a limit, in calls or in tokens."""

    key: str
    what: str
    window: "RateLimitItem"
    cost: int

    @property
    def refill_seconds(self) -> float:
        """Seconds in which the limit frees as much as the charge."""
        return self.cost * self.window.get_expiry() / self.window.amount


@dataclass
class RateLimits:
    """Rate limits of the settings, by provider ("anthropic"), model ("anthropic:x") or tool ("tool:search").

    `store` is "memory" (each process counts for itself) or the URL of a Redis that all workers share.
    """

    limits: Mapping[str, RateLimit]
    store: str = field(default=MEMORY, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _limiter: "SlidingWindowCounterRateLimiter | None" = None
    _local: "SlidingWindowCounterRateLimiter | None" = None
    """Limiter in memory, for while the store is away."""
    _local_until: float = 0.0

    async def acquire(self, keys: tuple[str, ...], tokens: Callable[[], int]) -> None:
        """Wait until the limits of all keys have room, and charge the call to each of them.

        Raises:
            Throttled: it would take too long.

        """
        charges, waited = self._charges(keys, tokens), 0.0
        while (short := await self._charge(charges)) is not None:
            # By chance: otherwise all calls that wait for this limit would try again together.
            wait = short.refill_seconds * (0.5 + self.chance())
            if waited + wait > _LONGEST_WAIT.total_seconds():
                retry_after = timedelta(seconds=max(wait, _SHORTEST_RETRY_SECONDS))
                raise Throttled(short.key, f"{short.what} a minute", retry_after)
            await self.sleep(wait)
            waited += wait

    def _charges(self, keys: tuple[str, ...], tokens: Callable[[], int]) -> "list[_Charge]":
        """Return the call's charges: first calls, whose windows are short, then tokens."""
        calls, input_tokens = list[_Charge](), list[_Charge]()
        for key in keys:
            limit = self.limits.get(key)
            if limit is None:
                continue
            if limit.calls is not None:
                calls.append(_Charge(key, "calls", _call_window(limit.calls), 1))
            if limit.tokens is not None:
                # A call larger than the limit would never pass: it passes when the window is empty.
                cost = min(max(tokens(), 1), limit.tokens)
                input_tokens.append(_Charge(key, "tokens", _token_window(limit.tokens), cost))
        return calls + input_tokens

    async def _charge(self, charges: "list[_Charge]") -> "_Charge | None":
        """Make all charges and return None, or return the first for which there is no room.

        All limits are tested before any is charged, so that a refused call takes no room of the rest.
        Another call may come between test and charge; then a limit counts a call that was not made.
        """
        for operation in (_has_room, _take) if len(charges) > 1 else (_take,):
            for charge in charges:
                if not await self._ask_store(charge.window, charge.key, charge.what, charge.cost, operation):
                    return charge
        return None

    async def count_tokens(self, keys: tuple[str, ...], tokens: int) -> None:
        """Count tokens of a call that was made; where there is no room for them, they fill the window."""
        for key in keys:
            limit = self.limits.get(key)
            if limit is None or limit.tokens is None or tokens <= 0:
                continue
            window = _token_window(limit.tokens)
            # The store counts all tokens or none. Where they do not fit, what room is left is taken.
            if not await self._ask_store(window, key, "tokens", min(tokens, window.amount), _take):
                left = await self._ask_store(window, key, "tokens", 0, _remaining)
                await self._ask_store(window, key, "tokens", left, _take)

    async def close(self) -> None:
        """Close the store's connections."""
        # Only storages of Redis have a bridge, and connections to close.
        bridge = getattr(self._limiter.storage, "bridge", None) if self._limiter else None
        if bridge is not None:
            await bridge.storage.aclose()
        self._limiter = None

    async def _ask_store(
        self, window: "RateLimitItem", key: str, what: str, cost: int, operation: "_Operation"
    ) -> int:
        """Return the operation's result by the store, or by this worker's own count while it is away."""
        if self._limiter is None:
            self._limiter = _limiter(self.store)
        if self.clock() < self._local_until:
            return await operation(self._local_limiter(), window, (key, what), cost)
        try:
            return await operation(self._limiter, window, (key, what), cost)
        except Exception as error:
            # A limit counted too loosely for a while is better than runs that stand still.
            if self.store == MEMORY:
                raise
            _log.warning(
                "the store of rate limits is away, this worker counts for itself: %s", type(error).__name__
            )
            self._local_until = self.clock() + _STORE_RETRY.total_seconds()
            return await operation(self._local_limiter(), window, (key, what), cost)

    def _local_limiter(self) -> "SlidingWindowCounterRateLimiter":
        if self._local is None:
            self._local = _limiter(MEMORY)
        return self._local


_Operation = Callable[
    ["SlidingWindowCounterRateLimiter", "RateLimitItem", tuple[str, str], int], Awaitable[int]
]


async def _has_room(
    limiter: "SlidingWindowCounterRateLimiter", window: "RateLimitItem", name: tuple[str, str], cost: int
) -> int:
    return await limiter.test(window, *name, cost=cost)


async def _take(
    limiter: "SlidingWindowCounterRateLimiter", window: "RateLimitItem", name: tuple[str, str], cost: int
) -> int:
    return cost <= 0 or await limiter.hit(window, *name, cost=cost)


async def _remaining(
    limiter: "SlidingWindowCounterRateLimiter", window: "RateLimitItem", name: tuple[str, str], _: int
) -> int:
    return (await limiter.get_window_stats(window, *name)).remaining


def _limiter(store: str) -> "SlidingWindowCounterRateLimiter":
    try:
        from limits.aio.strategies import SlidingWindowCounterRateLimiter
        from limits.errors import ConfigurationError
        from limits.storage import storage_from_string
    except ImportError:
        raise DefinitionError(_MISSING) from None
    try:
        if store == MEMORY:
            return SlidingWindowCounterRateLimiter(storage_from_string("async+memory://"))
        options: dict[str, Any] = {
            "implementation": "redispy",
            "socket_timeout": _STORE_TIMEOUT_SECONDS,
            "socket_connect_timeout": _STORE_TIMEOUT_SECONDS,
        }
        return SlidingWindowCounterRateLimiter(storage_from_string(f"async+{store}", **options))
    except (ConfigurationError, ValueError, ImportError) as error:
        # Not chained: the library's messages hold the whole URL, with its password.
        if isinstance(error, ImportError) or "prerequisite" in str(error):
            raise DefinitionError(_MISSING) from None
        raise DefinitionError("PERDURE_RATE_LIMIT_STORE: write it as redis://host:port/number") from None


def check_rate_limits(limits: Mapping[str, RateLimit], store: str) -> None:
    """Check at the start of a worker, not at its first call, that the limits can be counted.

    Raises:
        DefinitionError: the library is not installed, or the store's address is not valid.

    """
    if limits:
        _limiter(store)


def _call_window(calls: int) -> "RateLimitItem":
    """Return a window for `calls` a minute that is shorter than a minute; never more than `calls` in all.

    A window holds a whole number of calls. What rounding cuts off is at most a tenth of the limit.
    """
    from limits import RateLimitItemPerSecond

    if calls <= 12:
        return RateLimitItemPerSecond(1, math.ceil(60 / calls))
    if calls >= _ONE_SECOND_WINDOW_FROM:
        return RateLimitItemPerSecond(calls // 60)
    if calls >= 240:
        return RateLimitItemPerSecond(calls * _WINDOW_SECONDS // 60, _WINDOW_SECONDS)
    # The shortest window that divides a minute and loses less than a tenth to rounding.
    seconds = next(s for s in (5, 6, 10, 12, 15, 20, 30, 60) if calls * s // 60 * 60 >= 0.9 * calls * s)
    return RateLimitItemPerSecond(calls * seconds // 60, seconds)


def _token_window(tokens: int) -> "RateLimitItem":
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(tokens)
