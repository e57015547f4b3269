"""Activities that met only workers without what they call: they are started anew.

The activity's own attempts come first (`activities/elsewhere.py`). Temporal bounds them by the number of failures and
deaths that a call may have, which may be one. A mark on the error says that no attempt has begun the call, so a new
activity repeats nothing. No history of an earlier version has the mark.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from perdure.wire.names import NOT_SERVED

_ATTEMPTS: Final = 40
"""Attempts in all. Where one worker of five serves the call, 1 of 7,000 calls meets none of these."""
ONCE: Final = _ATTEMPTS
"""For an activity that is never started anew: another worker's error says nothing of the kind."""
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=50), timedelta(seconds=1)


class SoughtActivity:
    """Activity that is started anew while it has met only workers that do not serve what it calls.

    Args:
        start: starts the activity.
        attempts: attempts that Temporal makes of it.

    """

    def __init__(self, start: Callable[[], "workflow.ActivityHandle[Any]"], attempts: int) -> None:
        self._start = start
        self._attempts = max(attempts, 1)
        self._handle = start()
        self._is_given_up = False

    def cancel(self) -> None:
        """Ask the activity to end; it is not started anew."""
        self._is_given_up = True
        self._handle.cancel()

    def give_up(self) -> None:
        """Start it no more; what is pending goes on, and nobody awaits it."""
        self._is_given_up = True

    async def result(self) -> Any:
        """Return the activity's value, or raise its error."""
        pause = _FIRST_PAUSE
        made = 0
        while True:
            try:
                return await self._handle
            except ActivityError as error:
                made += self._attempts
                if made >= _ATTEMPTS or self._is_given_up or not is_not_served(error):
                    raise
                unserved = error
            await workflow.sleep(pause, summary="look for another worker")
            if self._is_given_up:
                raise unserved
            pause = min(2 * pause, _LONGEST_PAUSE)
            with _not_on_this_worker():
                self._handle = self._start()


@contextmanager
def _not_on_this_worker() -> Generator[None]:
    """Start activities by way of the task queue while the block runs.

    The worker that completes a workflow task would otherwise get the activity at once: always the same worker, which
    does not serve it. The SDK lets an interceptor set this for an activity, and no caller.
    """
    runtime: Any = workflow._Runtime.current()  # pyright: ignore[reportPrivateUsage]
    is_off = runtime._disable_eager_activity_execution
    runtime._disable_eager_activity_execution = True
    try:
        yield
    finally:
        runtime._disable_eager_activity_execution = is_off


def is_not_served(error: ActivityError) -> bool:
    """Return whether no attempt of the activity met a worker that serves what it calls."""
    cause = error.cause
    return isinstance(cause, ApplicationError) and NOT_SERVED in cause.details
