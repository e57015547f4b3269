"""Pauses of a run that cannot begin yet."""

from collections.abc import Iterator
from datetime import timedelta

from temporalio import workflow

_FIRST, _LONGEST = timedelta(seconds=1), timedelta(minutes=3)
"""With chance, a pause is between half and one and a half times as long: the longest is four and a half minutes."""


def growing_pauses() -> Iterator[timedelta]:
    """Yield pauses, each about twice as long as the one before."""
    pause = _FIRST
    while True:
        # By chance, because the runs of an outage would otherwise try again together.
        yield pause * (0.5 + workflow.random().random())
        pause = min(2 * pause, _LONGEST)
