"""Threads for functions that are not async: none that hangs keeps another from running."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from perdure.activities.threads import FunctionThreads, NoThreadLeft, call_function
from tests.conftest import until


async def _call(threads: FunctionThreads, function: Callable[[], Any], *, is_async: bool = False) -> Any:
    return await call_function(threads, "f", function, is_async=is_async)


async def _lose(threads: FunctionThreads, blocker: threading.Event) -> None:
    """Give a call up while its function runs."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin() -> None:
        loop.call_soon_threadsafe(begun.set)

    call = asyncio.create_task(call_function(threads, "hangs", blocker.wait, is_async=False, begins=begin))
    await begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_lost_threads_are_replaced() -> None:
    """Threads that hang are counted by function, and others take their place, up to a bound."""
    losses: list[int] = []
    threads, blocker = FunctionThreads(3, lambda: losses.append(1)), threading.Event()
    for _ in range(2):
        await _lose(threads, blocker)
    assert await _call(threads, lambda: "quick") == "quick"
    assert (threads.lost_threads, threads.states(), threads.problem()) == (2, {"hangs": "2 lost"}, None)
    await _lose(threads, blocker)
    called: list[int] = []
    with pytest.raises(NoThreadLeft, match="not called: 3 threads hang"):
        await _call(threads, lambda: called.append(1))
    assert called == []
    assert threads.problem() == "3 threads hang in functions that never returned: restart this worker"
    blocker.set()

    async def is_whole() -> bool:
        return threads.lost_threads == 0

    await until(is_whole)
    assert (threads.problem(), threads.states(), len(losses)) == (None, {}, 3)
    assert await _call(threads, lambda: "again") == "again"


async def test_threads_are_reused() -> None:
    """Calls one after the other share a thread, so that what a function keeps by thread serves it again."""
    threads = FunctionThreads()

    async def ident() -> int:
        return int(await _call(threads, threading.get_ident))

    async def is_same() -> bool:
        return await ident() == await ident()

    await until(is_same)  # a thread is idle a moment after its answer


async def test_machine_without_threads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that gets no more threads from its system refuses the call, and the function is not called."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NoThreadLeft, match="can't start new thread"):
        await _call(FunctionThreads(), lambda: "never")


async def test_call_given_up_early_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose call is given up before its thread begins is never called, and no thread is lost."""
    late: list[threading.Thread] = []
    start = threading.Thread.start

    def start_later(thread: threading.Thread) -> None:
        late.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    threads, called = FunctionThreads(), list[str]()
    call = asyncio.create_task(_call(threads, lambda: called.append("early")))

    async def is_started() -> bool:
        return bool(late)

    await until(is_started)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    start(late[0])
    monkeypatch.undo()
    await _call(threads, lambda: called.append("later"))
    assert (called, threads.lost_threads) == (["later"], 0)


def _pieces() -> Iterator[str]:
    yield "one"
    yield f"two {threading.current_thread().name}"


async def _async_pieces() -> AsyncIterator[str]:
    yield "one"
    yield f"two {threading.current_thread().name}"


async def _coroutine() -> str:
    return "one"


class _Callable:
    async def __call__(self) -> str:
        return "one"


@pytest.mark.parametrize(
    ("function", "is_async", "value"),
    [
        (_pieces, False, ["one", "two perdure-function"]),
        (functools.partial(_pieces), False, ["one", "two perdure-function"]),
        (lambda: map(str, [1, 2]), False, ["1", "2"]),
        (_async_pieces, False, ["one", "two MainThread"]),
        (_coroutine, True, "one"),
        (functools.partial(_coroutine), False, "one"),
        (_Callable(), False, "one"),
        (lambda: ["a", "list"], False, ["a", "list"]),
    ],
)
async def test_function_is_done_when_it_returns(
    function: Callable[[], Any], is_async: bool, value: Any
) -> None:
    """Generators, iterators and awaitables are run to their end within the call, plain ones in the thread."""
    assert await _call(FunctionThreads(), function, is_async=is_async) == value


async def test_error_of_generator_is_raised() -> None:
    """An error in a generator's body is the call's error, as in a function."""

    def broken() -> Iterator[str]:
        yield "one"
        raise LookupError("no table")

    with pytest.raises(LookupError, match="no table"):
        await _call(FunctionThreads(), broken)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await _call(FunctionThreads(), functools.partial(next, iter(())))
