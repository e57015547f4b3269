"""Rate limits: calls and tokens a minute, held across all workers that share a store.

The counting is the `limits` library's (sliding windows, in memory or in Redis). Ours is what a limit
means here: calls are let in evenly over the minute, because a provider that has just come back must not be
asked by all at once; tokens are counted before the call by our estimate, and after it by what it wrote.
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
_SLICE: Final = 5
"""Seconds over which calls are let in evenly."""
_MANY: Final = 1200
"""Calls a minute from which on they are let in evenly over each single second."""
_ALONE: Final = timedelta(seconds=30)
"""After the store has failed, it is asked again after so long."""
_STORE_ANSWERS_WITHIN: Final = 2.0
"""Seconds. A store that hangs must hold nobody up."""
_MISSING: Final = 'PERDURE_RATE_LIMITS needs a library: pip install "perdure[limits]"'
_PATIENCE: Final = timedelta(seconds=20)
"""A call that must wait longer gives its place up: the run is parked, and comes back."""


class Throttled(Exception):
    """There is no room for the call for about so long."""

    def __init__(self, key: str, what: str, wait: timedelta) -> None:
        self.retry_after = wait
        super().__init__(f"the rate limit of {key} ({what}) has no room: try in {wait.total_seconds():.0f} s")


class _Want(NamedTuple):
    """What a call takes of one limit."""

    key: str
    what: str
    window: "RateLimitItem"
    cost: int

    @property
    def refill(self) -> float:
        """Seconds in which so much gets free."""
        return self.cost * self.window.get_expiry() / self.window.amount


@dataclass
class RateLimits:
    """Those of the settings, by provider ("anthropic"), model ("anthropic:x") or tool ("tool:search").

    `store` is "memory", each process for itself, or a URL of Redis, which all workers share.
    """

    limits: Mapping[str, RateLimit]
    store: str = field(default=MEMORY, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _limiter: "SlidingWindowCounterRateLimiter | None" = None
    _alone: "SlidingWindowCounterRateLimiter | None" = None
    _alone_until: float = 0.0

    async def acquire(self, keys: tuple[str, ...], tokens: Callable[[], int]) -> None:
        """Wait until the call may be made; of the keys, each that has a limit counts it.

        Raises:
            Throttled: it would take too long.

        """
        wants, waited = self._wants(keys, tokens), 0.0
        while (short := await self._short_of(wants)) is not None:
            wait = short.refill * (0.5 + self.chance())
            if waited + wait > _PATIENCE.total_seconds():
                raise Throttled(short.key, f"{short.what} a minute", timedelta(seconds=max(wait, 5)))
            await self.sleep(wait)
            waited += wait

    def _wants(self, keys: tuple[str, ...], tokens: Callable[[], int]) -> "list[_Want]":
        """What the call takes of each limit: first of calls, whose windows are short, then of tokens."""
        of_calls, of_tokens = list[_Want](), list[_Want]()
        for key in keys:
            limit = self.limits.get(key)
            if limit is None:
                continue
            if limit.calls is not None:
                of_calls.append(_Want(key, "calls", _evenly(limit.calls), 1))
            if limit.tokens is not None:
                read = min(max(tokens(), 1), limit.tokens)  # a larger one passes when the window is empty
                of_tokens.append(_Want(key, "tokens", _a_minute(limit.tokens), read))
        return of_calls + of_tokens

    async def _short_of(self, wants: "list[_Want]") -> "_Want | None":
        """Which of them has no room; None: all are counted.

        Who is refused takes no place with the others, unless somebody came between the two questions.
        """
        for ask in (_has_room, _takes_its_place) if len(wants) > 1 else (_takes_its_place,):
            for want in wants:
                if not await self._asked(want.window, want.key, want.what, want.cost, ask):
                    return want
        return None

    async def count_tokens(self, keys: tuple[str, ...], tokens: int) -> None:
        """Count tokens that were read or written; those for which there is no room fill the window."""
        for key in keys:
            limit = self.limits.get(key)
            if limit is None or limit.tokens is None or tokens <= 0:
                continue
            window = _a_minute(limit.tokens)
            if not await self._asked(window, key, "tokens", min(tokens, window.amount), _takes_its_place):
                left = await self._asked(window, key, "tokens", 0, _what_is_left)
                await self._asked(window, key, "tokens", left, _takes_its_place)

    async def close(self) -> None:
        """Give the store's connections back."""
        bridge = getattr(self._limiter.storage, "bridge", None) if self._limiter else None
        if bridge is not None:
            await bridge.storage.aclose()
        self._limiter = None

    async def _asked(self, window: "RateLimitItem", key: str, what: str, cost: int, ask: "_Ask") -> int:
        """Ask the store. One that is away stops nobody's work."""
        if self._limiter is None:
            self._limiter = _limiter(self.store)
        if self.clock() < self._alone_until:
            return await ask(self._own(), window, (key, what), cost)
        try:
            return await ask(self._limiter, window, (key, what), cost)
        except Exception as error:
            if self.store == MEMORY:
                raise
            _log.warning(
                "the store of rate limits is away, this worker counts for itself: %s", type(error).__name__
            )
            self._alone_until = self.clock() + _ALONE.total_seconds()
            return await ask(self._own(), window, (key, what), cost)

    def _own(self) -> "SlidingWindowCounterRateLimiter":
        if self._alone is None:
            self._alone = _limiter(MEMORY)
        return self._alone


_Ask = Callable[["SlidingWindowCounterRateLimiter", "RateLimitItem", tuple[str, str], int], Awaitable[int]]


async def _has_room(
    limiter: "SlidingWindowCounterRateLimiter", window: "RateLimitItem", name: tuple[str, str], cost: int
) -> int:
    return await limiter.test(window, *name, cost=cost)


async def _takes_its_place(
    limiter: "SlidingWindowCounterRateLimiter", window: "RateLimitItem", name: tuple[str, str], cost: int
) -> int:
    return cost <= 0 or await limiter.hit(window, *name, cost=cost)


async def _what_is_left(
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
            "socket_timeout": _STORE_ANSWERS_WITHIN,
            "socket_connect_timeout": _STORE_ANSWERS_WITHIN,
        }
        return SlidingWindowCounterRateLimiter(storage_from_string(f"async+{store}", **options))
    except (ConfigurationError, ValueError, ImportError) as error:
        # Their messages hold the whole URL, with its password.
        if isinstance(error, ImportError) or "prerequisite" in str(error):
            raise DefinitionError(_MISSING) from None
        raise DefinitionError("PERDURE_RATE_LIMIT_STORE: write it as redis://host:port/number") from None


def check(limits: Mapping[str, RateLimit], store: str) -> None:
    """Find out at the start of a worker, not at its first call, that something is missing.

    Raises:
        DefinitionError: the library is not installed, or the store's address is none.

    """
    if limits:
        _limiter(store)


def _evenly(calls: int) -> "RateLimitItem":
    """So many a minute, as fewer in a shorter time; never more in all."""
    from limits import RateLimitItemPerSecond

    if calls <= 12:
        return RateLimitItemPerSecond(1, math.ceil(60 / calls))
    if calls >= _MANY:  # what is cut off, here and below, is less than a tenth
        return RateLimitItemPerSecond(calls // 60)
    if calls >= 240:
        return RateLimitItemPerSecond(calls * _SLICE // 60, _SLICE)
    seconds = next(s for s in (5, 6, 10, 12, 15, 20, 30, 60) if calls * s // 60 * 60 >= 0.9 * calls * s)
    return RateLimitItemPerSecond(calls * seconds // 60, seconds)


def _a_minute(tokens: int) -> "RateLimitItem":
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(tokens)
