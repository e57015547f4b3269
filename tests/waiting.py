"""Waiting for what only polling can see, with a deadline; for tests that are not async."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T], what: str, *, within: float = 60.0, every: float = 0.02) -> T:
    """What `look` gives, once it gives something true.

    Raises:
        AssertionError: it did not, in time.

    """
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(every)
