"""Outages of the server: a call that is harmless to repeat is repeated until the server answers again, for a minute.

The SDK itself repeats a call for ten seconds. A server that restarts, or moves to another machine, is away for
longer. A call repeated here may have reached the server the first time, so it must have the same effect twice as
once: by its update id, by its run's id, or by what it does.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

from temporalio.service import RPCError

from .errors import is_server_away

_T = TypeVar("_T")

RIDES_OUT: Final = timedelta(seconds=50)
"""Time from the first failure in which a call is repeated. The first takes ten seconds to fail, and so may the last."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_LONGER_THAN_RETRIES: Final = 20.0
"""Seconds after which a call that broke must have had an answer meanwhile: the SDK gives up before."""


async def ride_out(call: Callable[[], Awaitable[_T]], *, within: timedelta | None = None) -> _T:
    """Make the call, again and again while the server is away, and return its value.

    Raises:
        RPCError: the server refused the call, or was away for longer than `within` (`RIDES_OUT`).

    """
    within = RIDES_OUT if within is None else within
    since, pause = None, _FIRST_PAUSE
    while True:
        began = time.monotonic()
        try:
            return await call()
        except RPCError as error:
            now = time.monotonic()
            # A wait for a result lasts as long as the run: each outage under it has its own time.
            if since is None or now - began > _LONGER_THAN_RETRIES:
                since, pause = now, _FIRST_PAUSE
            if not is_server_away(error) or now - since >= within.total_seconds():
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
