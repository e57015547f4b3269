"""Watch of a worker's event loop: says which function holds it, because then nothing else in the worker runs.

Theory of operation
1. A thread asks the loop for a sign every second. If none comes within `HELD_AFTER`, the stack of the loop's thread
   tells who holds it: a function that `call_function` awaits, by its name, or else the function of the user's that a
   library or we have called, such as a model of their own.
2. A loop that only waits for its turn on a busy machine is held by nobody. Where the stack shows libraries and our own
   code alone, the same callback must still run a second later.
3. One record is logged when that is found, by this thread, since the loop's own could not. One more is logged when the
   loop runs again. It names the other calls that stood still: a heartbeat timeout of theirs is no fault of their own.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final
from weakref import WeakKeyDictionary

from . import threads

HELD_AFTER: Final = 3.0
"""Seconds without a sign of the loop after which it counts as held."""
_ASKS_EVERY: Final = 1.0
_MOST_NAMED: Final = 5
"""Calls that are named among those that stood still."""

_log = logging.getLogger("perdure.worker")
_KINDS: Final = {"tool": "tool", "hook": "hook", "graph": "function of graph"}
_LOOPS: Final = ("asyncio.base_events", "asyncio.runners", "selectors")
"""Modules of the loop itself. What stands below them has called the loop, and is not called by it."""
_LIBRARIES: Final = (sys.base_prefix, sys.prefix)
_pending: dict[int, tuple[str, str]] = {}
"""Run and activity of each call that is under way in this process."""


@dataclass(frozen=True)
class Holder:
    """Function that holds an event loop, in words, and the place at which it stands."""

    name: str
    place: str
    run_id: str = ""
    """Run for which it was called, where that is known."""
    callback: FrameType | None = None
    """Frame that the loop has called. None: the name is that of a user's function, and proves enough."""


@contextmanager
def pending_call(run_id: str, activity: str) -> Generator[None]:
    """Count a call as under way while the block runs."""
    key = id(asyncio.current_task())
    _pending[key] = (run_id, activity)
    try:
        yield
    finally:
        _pending.pop(key, None)


class _Watch:
    """Thread that watches one event loop, for all workers in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_held: Callable[[str, float], None]) -> None:
        self.users = 0
        self._loop = loop
        self._on_held = on_held
        self._thread = threading.get_ident()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="perdure-loop-watch", daemon=True).start()

    def end(self) -> None:
        """End the thread."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_ASKS_EVERY):
            answered, asked_at = threading.Event(), time.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            if answered.wait(HELD_AFTER):
                continue
            holder = self._find_holder(answered)
            if holder is not None:
                self._report(holder, answered, asked_at)

    def _find_holder(self, answered: threading.Event) -> Holder | None:
        """Return the function that holds the loop; None if it only waits for its turn, or answers by now."""
        holder = self._holder_now()
        if holder is None or holder.callback is None:
            return holder
        if answered.wait(_ASKS_EVERY):
            return None
        again = self._holder_now()
        return again if again is not None and again.callback in (None, holder.callback) else None

    def _holder_now(self) -> Holder | None:
        frame = sys._current_frames().get(self._thread)
        return None if frame is None else find_holder(frame)

    def _report(self, holder: Holder, answered: threading.Event, asked_at: float) -> None:
        of_run = f" for run {holder.run_id}" if holder.run_id else ""
        others = _calls_of_others(holder.run_id)
        _log.warning(
            "%s has held the event loop for %.0f s%s, at %s: no other call of this worker goes on. Make it a function "
            "that is not async, which gets a thread, or await what takes so long",
            holder.name,
            time.monotonic() - asked_at,
            of_run,
            holder.place,
        )
        while not answered.wait(_ASKS_EVERY) and not self._ended.is_set():
            pass
        seconds = time.monotonic() - asked_at
        _log.warning(
            "%s held the event loop for %.0f s%s. %s",
            holder.name,
            seconds,
            of_run,
            others or "No other call waited",
        )
        self._on_held(holder.name, seconds)


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()


@asynccontextmanager
async def watch_loop(on_held: Callable[[str, float], None]) -> AsyncGenerator[None]:
    """Watch the running loop while the block runs; several workers in a loop share a watch.

    Args:
        on_held: called with the holder's name and the seconds, in another thread, once the loop runs again.

    """
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop) or _watches.setdefault(loop, _Watch(loop, on_held))
    watch.users += 1
    try:
        yield
    finally:
        watch.users -= 1
        if not watch.users:
            watch.end()
            _watches.pop(loop, None)


def _calls_of_others(run_id: str) -> str:
    """Return in words which calls of other runs are under way."""
    calls = sorted({call for call in _pending.copy().values() if call[0] != run_id})
    if not calls:
        return ""
    named = ", ".join(f"{activity} of {run}" for run, activity in calls[:_MOST_NAMED])
    more = f" and {len(calls) - _MOST_NAMED} more" if len(calls) > _MOST_NAMED else ""
    return f"Meanwhile these stood still, and a timeout of theirs is no fault of their own: {named}{more}"


def find_holder(innermost: FrameType) -> Holder | None:
    """Return the function that runs in these frames; None for a loop that runs none."""
    own: FrameType | None = None
    outermost: FrameType | None = None
    callback: FrameType | None = None
    frame: FrameType | None = innermost
    while frame is not None and frame.f_globals.get("__name__") not in _LOOPS:
        if not _is_of_library(frame):
            own, outermost = own or frame, frame
        if frame.f_code is threads.call_function.__code__:
            kind, _, name = str(frame.f_locals["name"]).partition(":")
            run_id = _run_of_current_task()
            return Holder(f"{_KINDS.get(kind, kind)} `{name}`", _place(own or innermost), run_id)
        if _package(frame) != "asyncio":
            callback = frame
        frame = frame.f_back
    if own is not None and outermost is not None:
        return Holder(f"function `{outermost.f_code.co_qualname}`", _place(own), _run_of_current_task())
    if callback is None:
        return None
    words = f"`{innermost.f_code.co_qualname}` of {innermost.f_globals.get('__name__', 'a library')}"
    return Holder(words, _place(innermost), _run_of_current_task(), callback)


def _run_of_current_task() -> str:
    """Return the run whose call a watched loop executes now, or an empty text."""
    for loop in list(_watches):
        task = asyncio.tasks.current_task(loop)
        if id(task) in _pending:
            return _pending[id(task)][0]
    return ""


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_of_library(frame: FrameType) -> bool:
    # A program's own module is `__main__`, also where that is a library's, such as pytest's.
    return _package(frame) == "perdure" or frame.f_code.co_filename.startswith((*_LIBRARIES, "<"))


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
