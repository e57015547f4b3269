"""Functions of the user, called by an activity: on the event loop if they are async, else in a thread."""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


async def call_function(function: Callable[..., Any], executor: Executor, *args: Any, **named: Any) -> Any:
    """Call the function, in a thread with this context unless it is async, and return its value."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **named)
    in_context = functools.partial(contextvars.copy_context().run, function, *args, **named)
    value = await asyncio.get_running_loop().run_in_executor(executor, in_context)
    # A plain function may return a coroutine, as a `functools.partial` of an async one does.
    return await value if asyncio.iscoroutine(value) else value
