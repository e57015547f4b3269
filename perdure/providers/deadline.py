"""The time limit of one model call."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from perdure.model import ModelConfig

T = TypeVar("T")


class CallDeadline:
    """The time limit of one call: `ModelConfig.timeout` from now, on the running event loop's clock."""

    def __init__(self, config: ModelConfig) -> None:
        self._clock = asyncio.get_running_loop().time
        self._at = self._clock() + config.timeout.total_seconds()
        self._longest_silence = config.longest_silence

    async def wait_for(self, awaitable: Awaitable[T]) -> T:
        """Return the awaitable's result.

        Raises:
            TimeoutError: the call's time is over.

        """
        return await _wait_until(self._at, awaitable, self._clock)

    async def wait_for_data(self, awaitable: Awaitable[T]) -> T:
        """Return the awaitable's result, within `read_timeout` if the config sets one.

        For adapters whose HTTP library cannot bound a read by itself. The bound is on whole events here,
        so a provider's keep-alive messages must come through as events.

        Raises:
            TimeoutError: the call's time is over, or nothing arrived for `read_timeout`.

        """
        return await _wait_until(min(self._at, self._clock() + self._longest_silence), awaitable, self._clock)


async def _wait_until(at: float, awaitable: Awaitable[T], clock: Callable[[], float]) -> T:
    # The timeout is entered and left for each read. Held open across a `yield`, it would cancel the
    # consumer of the stream in the middle of the consumer's own work.
    async with asyncio.timeout_at(at):
        result = await awaitable
    # A timeout only ends a wait. A provider that always has data ready never makes us wait.
    if clock() > at:
        raise TimeoutError
    return result
