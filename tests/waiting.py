"""Polling with a deadline, for tests that are not async."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T], what: str, *, within: float = 60.0, every: float = 0.02) -> T:
    """Call `look` until its value is true; return the value.

    Raises:
        AssertionError: the value was not true in time.

    """
    start = time.monotonic()
    while True:
        value = look()
        if value:
            return value
        waited = time.monotonic() - start
        assert waited < within, f"waited {within:g} s for {what}"
        time.sleep(next_poll(waited, every))


def next_poll(waited: float, every: float) -> float:
    """Return the seconds to the next poll: a tenth of the wait so far, at least `every`, at most a quarter."""
    return max(every, min(waited / 10, 0.25))
