"""Calls of what this worker does not serve: they are tried elsewhere, on another worker of the task queue.

Rules
1. A worker that has not the agent, tool, function, hook or provider of a call refuses it before anything is done.
   That is no failure of what is called: it counts against no retry of the user's, and is no event in history.
2. The next attempt comes soon, and whichever worker polls next gets it. The delay grows with the attempts, first to
   a second. From the tenth on there is a short burst now and then: a worker that starts now should get one of them.
3. Temporal's attempts are bounded. When they are used up, and none of them met a worker that has it, the error has
   a mark. The run may then start the call anew (`workflows/elsewhere.py`): no attempt of it can have had an effect.
"""

import logging
import random
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.wire.effects import Progress
from perdure.wire.names import NOT_SERVED

from .heartbeat import last_progress

_log = logging.getLogger("perdure.worker")
_FIRST: Final = 0.05
_SOON: Final = 1.0
"""Seconds between two of the first attempts, at most."""
_QUICK_ATTEMPTS: Final = 9
_BURST: Final = 3
"""Attempts in a burst. Between two bursts the pause is `_FIRST_PAUSE`, and then grows to `_LONGEST_PAUSE`."""
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0
_MOST_LOGGED: Final = 1000
_logged: set[str] = set()


def delay_elsewhere(attempt: int) -> timedelta:
    """Return the delay before the attempt that follows this one, the first being number 1."""
    if attempt <= _QUICK_ATTEMPTS:
        return timedelta(seconds=min(_FIRST * 2 ** (attempt - 1), _SOON))
    burst, place = divmod(attempt - _QUICK_ATTEMPTS, _BURST)
    if place:
        return timedelta(seconds=2 * _FIRST)
    pause: float = min(_FIRST_PAUSE * 1.5 ** min(burst, 20), _LONGEST_PAUSE)
    # By chance, because the runs that wait for the same worker would otherwise all try at once.
    return timedelta(seconds=pause * (0.75 + random.random() / 2))  # noqa: S311


def is_untried() -> bool:
    """Return whether no earlier attempt of this activity met a worker that serves what is called."""
    attempt, earlier = activity.info().attempt, last_progress()
    # An attempt without a heartbeat may have met it.
    return attempt == 1 or (earlier is not None and earlier.attempt == attempt - 1 and earlier.untried)


def not_served(
    message: str,
    progress: Progress,
    *details: Any,
    type: str,  # noqa: A002 - Temporal's own word
) -> ApplicationError:
    """Heartbeat the progress, and return the error of a call that this worker cannot make.

    Args:
        message: words that name the worker's lack.
        progress: the facts that the next attempt needs.
        details: further details of the error, before the mark.
        type: the error's type.

    """
    untried = is_untried()
    log_lack(message)
    activity.heartbeat(progress.model_copy(update={"untried": untried}))
    return refused_here(message, *details, *((NOT_SERVED,) if untried else ()), type=type)


def log_lack(message: str) -> None:
    """Log what this worker does not serve and was asked for: once for each lack, however many runs ask."""
    if message not in _logged and len(_logged) < _MOST_LOGGED:
        _logged.add(message)
        _log.warning("not served by this worker, and tried on another one of its task queue: %s", message)


def refused_here(message: str, *details: Any, type: str) -> ApplicationError:  # noqa: A002
    """Return the error that sends a call to another worker."""
    return ApplicationError(
        message,
        *details,
        type=type,
        next_retry_delay=delay_elsewhere(activity.info().attempt),
        # Logged above, once. Temporal would log each attempt, with a traceback.
        category=ApplicationErrorCategory.BENIGN,
    )
