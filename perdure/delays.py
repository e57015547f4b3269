"""Delays that come from outside: a provider's `retry-after`, the delay of a tool's error. Pure.

Rules
1. A delay of more than `LONGEST_DELAY` is shortened to it: whoever waits asks again by then.
2. A delay of more than a year is no delay: somebody wrote a date, a count of milliseconds, or nonsense. The wait is
   then our own.
3. No date is computed from a delay that has not passed here: it might lie beyond the last year there is.
"""

import math
from datetime import timedelta
from typing import Final

LONGEST_DELAY: Final = timedelta(days=7)
"""Longest delay that is waited for at once."""
_LEAST_SENSELESS: Final = timedelta(days=366)
_MOST_SECONDS: Final = _LEAST_SENSELESS.total_seconds()


def sensible_delay(value: object) -> timedelta | None:
    """Return a delay within its bounds, or None where there is none or it makes no sense.

    A number is a delay in seconds. A negative delay is over.
    """
    match value:
        case timedelta():
            delay = value
        case bool():
            return None
        case int() | float() if not math.isnan(value if isinstance(value, float) else 0):
            delay = timedelta(seconds=max(-1, min(value, _MOST_SECONDS)))
        case _:
            return None
    if delay >= _LEAST_SENSELESS:
        return None
    return max(timedelta(), min(delay, LONGEST_DELAY))
