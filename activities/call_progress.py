"""Progress of a tool call: its note, its clock, and the facts that pass from attempt to attempt in the heartbeat."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Final

from temporalio import activity

from perdure.wire.effects import Progress

from .content.redact import redact_and_cut
from .heartbeat import last_progress
from .traffic.transient_errors import may_have_taken_effect

_LONGEST_NOTE: Final = 500
"""Characters of a progress note that a tool reports."""


class FunctionClock:
    """Timeout that begins when the function does, in whichever thread that is."""

    def __init__(self, span: timedelta) -> None:
        self._seconds = span.total_seconds()
        self._loop = asyncio.get_running_loop()
        self.timeout = asyncio.timeout(None)

    def start(self) -> None:
        """Set the deadline, from now on."""
        when = self._loop.time() + self._seconds
        self._loop.call_soon_threadsafe(self._set, when)

    def _set(self, when: float) -> None:
        # The function may be over by now, and its timeout left.
        with contextlib.suppress(RuntimeError):
            self.timeout.reschedule(when)


class CallProgress:
    """Progress note that a tool writes from any thread, and the facts that pass from attempt to attempt."""

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.note = ""
        self.may_have_effect = self._earlier_may_have_effect = _earlier_attempt_may_have_effect()
        self._is_started = False
        earlier = last_progress()
        self.checked = earlier.checked if earlier else None
        """Verdict of the hooks before the call."""
        self.failures = earlier.failures if earlier else 0
        """Attempts that have failed, without those whose worker died or was stopped."""

    def mark_started(self) -> None:
        """Record that the tool is being called: from now on it may have its effect."""
        self._is_started = self.may_have_effect = True

    def mark_failed(self, error: BaseException) -> None:
        """Record the error, which may prove that this attempt had no effect."""
        self.failures += 1
        if self._is_started:
            self.may_have_effect = self._earlier_may_have_effect or may_have_taken_effect(error)

    def report(self, note: str) -> None:
        """Set the progress note: `ToolContext.report`."""
        self.note = redact_and_cut(str(note), _LONGEST_NOTE)

    def heartbeat(self, seq: int, window: int) -> Progress:
        """Return the heartbeat with sequence number `seq`, its note at most `window` characters.

        It says that the call may have its effect, whether the function has begun or not: if the worker dies now,
        nobody can tell what it did after the heartbeat. Only `last_word` can say that nothing happened.
        """
        return Progress(
            call=self.call_id,
            attempt=activity.info().attempt,
            seq=seq,
            note=self.note[:window],
            may_have_effect=True,
            failures=self.failures,
            checked=self.checked,
        )

    def last_word(self) -> Progress:
        """Return the heartbeat of an attempt that ends: whether it, or an earlier one, may have had its effect."""
        return self.heartbeat(0, 0).model_copy(update={"may_have_effect": self.may_have_effect})


def _earlier_attempt_may_have_effect() -> bool:
    """Check whether an earlier attempt may have had its effect, by the last heartbeat.

    An attempt without a heartbeat may have had it: its worker can have died at any point.
    """
    progress, attempt = last_progress(), activity.info().attempt
    return attempt > 1 and (progress is None or progress.attempt < attempt - 1 or progress.may_have_effect)
