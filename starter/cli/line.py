"""A line typed by a person at a terminal, which can be called back when it is no longer wanted.

With `prompt_toolkit` (in the extra `dev`) the line is edited with its keys and a history. Without it,
the terminal's own line editing has to do.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterable
from typing import Any, Protocol


class LineInterrupted(Exception):
    """Ctrl-C, typed instead of a line."""


class LineReader(Protocol):
    """Reads lines from the terminal, one at a time."""

    def remember(self, lines: Iterable[str]) -> None:
        """Let the up arrow find these lines, the last one first."""
        ...

    async def read(self, prompt: str) -> str | None:
        """Return the next line without its end, or None at Ctrl-D. Cancelling it gives the terminal back.

        Raises:
            LineInterrupted: Ctrl-C, where the terminal does not make it a signal.

        """
        ...


def line_reader() -> LineReader:
    """Return the best reader that is installed."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        return _PlainReader()
    session = PromptSession[str](history=InMemoryHistory(), interrupt_exception=LineInterrupted)
    return _EditingReader(session)


class _EditingReader:
    def __init__(self, session: Any) -> None:
        self._session = session

    def remember(self, lines: Iterable[str]) -> None:
        for line in lines:
            # Into the memory of this chat only: what users write is not kept in a file.
            self._session.history.append_string(line)

    async def read(self, prompt: str) -> str | None:
        try:
            # Signals stay with us: its own handler would replace that of a turn, and not put it back.
            line: str = await self._session.prompt_async(prompt, handle_sigint=False)
        except EOFError:
            return None
        return line


class _PlainReader:
    def remember(self, lines: Iterable[str]) -> None:
        """Do nothing: the terminal has no history."""

    async def read(self, prompt: str) -> str | None:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        # Without a thread: a thread that waits for a line cannot be called back, and would hold up Ctrl-C.
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), readable.set)
        try:
            await readable.wait()
        except asyncio.CancelledError:
            sys.stderr.write("\n")
            raise
        finally:
            loop.remove_reader(sys.stdin.fileno())
        # Does not block: a terminal becomes readable when a line is complete.
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None


async def read_answer(reader: LineReader, prompt: str) -> str | None:
    """Return the answer to a question; Ctrl-C means what it means while no question is open.

    The reader takes Ctrl-C for a key, so it is raised again as the signal that it otherwise is.
    """
    with contextlib.suppress(LineInterrupted):
        return await reader.read(prompt)
    signal.raise_signal(signal.SIGINT)
    # The handler of the signal cancels us, or ends the turn and with it the question.
    await asyncio.Event().wait()
    raise AssertionError("nothing sets this event")
