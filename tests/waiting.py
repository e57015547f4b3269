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
    deadline = time.monotonic() + within
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(every)
