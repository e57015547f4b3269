"""Calls of user functions: on the event loop if they are async, else in threads that cannot starve each other.

Theory of operation. A thread cannot be stopped, so a function that hangs keeps its thread for ever.
1. Each call gets a thread at once: an idle one, or a new one. No call waits for the thread of another.
2. A call that is given up while its function runs leaves a lost thread. It counts as lost until the function returns;
   then it is idle again. So activity slots bound the threads in use, and `most_lost` bounds the others.
3. With `most_lost` threads lost, calls are refused before their function is called, and the worker is not ready.
4. `begins` is called in the thread, right before the function: clocks and "may have had its effect" start there. The
   function of a call that was given up before that is never called.
5. Threads are daemons: a process can end although some hang.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from typing import Any, Final, Literal

from perdure.errors import RetryableToolError

_MOST_LOST: Final = 100


class NoThreadLeft(RetryableToolError):
    """Too many threads of this worker hang in functions; the function was not called."""


class _Job:
    """Call of a function in a thread, and how far it is."""

    def __init__(self, name: str, function: Callable[[], Any], begins: Callable[[], None]) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.state: Literal["waiting", "running", "lost", "over"] = "waiting"
        self._function = function
        self._begins = begins
        self._context = contextvars.copy_context()

    def call(self) -> tuple[Any, BaseException | None]:
        """Call the function; return its value, or the error that it raised."""
        try:
            return self._context.run(self._call), None
        except BaseException as error:
            return None, error

    def _call(self) -> Any:
        self._begins()
        return _collect(self._function())

    def answer(self, value: Any, error: BaseException | None) -> None:
        """Give the caller the outcome; it may be gone, and its event loop too."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._set, value, error)

    def _set(self, value: Any, error: BaseException | None) -> None:
        if self.future.cancelled():
            return
        if isinstance(error, StopIteration):
            # Neither a future nor a coroutine can raise it.
            stopped, error = error, RuntimeError(f"the function raised {error!r}")
            error.__cause__ = stopped
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class FunctionThreads:
    """Threads of a worker for functions that are not async."""

    def __init__(self, most_lost: int = _MOST_LOST, on_lost: Callable[[], None] = lambda: None) -> None:
        self._most_lost = most_lost
        self._on_lost = on_lost
        self._idle: list[SimpleQueue[_Job]] = []
        self._lost = Counter[str]()
        self._lock = threading.RLock()

    @property
    def lost_threads(self) -> int:
        """Number of threads that run a function whose call was given up."""
        with self._lock:
            return self._lost.total()

    def states(self) -> dict[str, str]:
        """Return how many lost threads run each function, by its name."""
        with self._lock:
            return {name: f"{count} lost" for name, count in sorted(self._lost.items())}

    def problem(self) -> str | None:
        """Return why functions are refused, or None while there are threads for them."""
        if self.lost_threads < self._most_lost:
            return None
        return f"{self.lost_threads} threads hang in functions that never returned: restart this worker"

    async def run(self, name: str, function: Callable[[], Any], begins: Callable[[], None]) -> Any:
        """Return the function's value; `begins` is called in its thread, right before it.

        `name` is for people who look for functions that hang.

        Raises:
            NoThreadLeft: the function was not called.

        """
        job = _Job(name, function, begins)
        self._start(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._give_up(job)
            raise

    def _start(self, job: _Job) -> None:
        with self._lock:
            problem = self.problem()
            jobs = self._idle.pop() if self._idle and problem is None else None
        if problem is None and jobs is None:
            jobs = SimpleQueue[_Job]()
            try:
                threading.Thread(
                    target=self._serve, args=(jobs,), name="perdure-function", daemon=True
                ).start()
            except RuntimeError as error:  # the system gives the process no more threads
                problem = str(error)
        if problem is not None or jobs is None:
            raise NoThreadLeft(f"not called: {problem}")
        jobs.put(job)

    def _give_up(self, job: _Job) -> None:
        with self._lock:
            if job.state == "running":
                job.state = "lost"
                self._lost[job.name] += 1
                self._on_lost()
            elif job.state == "waiting":
                job.state = "over"

    def _end(self, job: _Job) -> None:
        with self._lock:
            if job.state == "lost":
                self._lost -= Counter((job.name,))
            job.state = "over"

    def _serve(self, jobs: "SimpleQueue[_Job]") -> None:
        while True:
            job = jobs.get()
            with self._lock:
                is_wanted = job.state == "waiting"
                job.state = "running" if is_wanted else "over"
            outcome = job.call() if is_wanted else (None, None)
            self._end(job)
            if is_wanted:
                job.answer(*outcome)
            with self._lock:
                self._idle.append(jobs)
            del job, outcome  # an idle thread must not keep a value alive


async def call_function(
    threads: FunctionThreads,
    name: str,
    function: Callable[[], Any],
    *,
    is_async: bool,
    begins: Callable[[], None] = lambda: None,
) -> Any:
    """Return the function's value, awaited, and as a list if it is an iterator.

    Everything that the function does happens here, and so within the caller's timeout: a generator's body runs
    when it is iterated, not when it is called.

    Raises:
        NoThreadLeft: the function is not async and was not called.

    """
    if is_async:
        begins()
        value = function()
    else:
        value = await threads.run(name, function, begins)
    if inspect.isawaitable(value):
        value = await value
    if isinstance(value, AsyncIterator):
        return [item async for item in value]  # pyright: ignore[reportUnknownVariableType]
    return _collect(value)


def _collect(value: Any) -> Any:
    return list[Any](value) if isinstance(value, Iterator) else value  # pyright: ignore[reportUnknownArgumentType]
