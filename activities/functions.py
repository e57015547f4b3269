"""Functions of the user, called by an activity: on the event loop if they are async, else in a thread."""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Raised:
    """Exception of a function in a thread, on its way to the event loop."""

    error: BaseException


async def call_function(function: Callable[..., Any], executor: Executor, *args: Any, **named: Any) -> Any:
    """Call the function, in a thread with this context unless it is async, and return its value.

    Raises:
        BaseException: whatever the function raised, `SystemExit` included.

    """
    if inspect.iscoroutinefunction(function):
        return await function(*args, **named)
    in_context = functools.partial(contextvars.copy_context().run, function, *args, **named)
    value = await asyncio.get_running_loop().run_in_executor(executor, _call, in_context)
    if isinstance(value, _Raised):
        if isinstance(value.error, StopIteration):  # which a coroutine cannot raise
            raise RuntimeError(f"the function raised {value.error!r}") from value.error
        raise value.error
    # A plain function may return a coroutine, as a `functools.partial` of an async one does.
    return await value if asyncio.iscoroutine(value) else value


def _call(function: Callable[[], Any]) -> Any:
    try:
        return function()
    # Passed as a value: a future refuses StopIteration, and the call would never return.
    except BaseException as error:
        return _Raised(error)
