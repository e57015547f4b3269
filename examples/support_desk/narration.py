"""What the demo says: headings, a run's events as they come, claims that were checked, tables."""

from collections.abc import AsyncIterator, Sequence

from rich.console import Console

from perdure import Run
from perdure.wire.events import (
    Event,
    MessageFinished,
    Retrying,
    StatusChanged,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)

_console = Console(highlight=False, markup=False, soft_wrap=True)


class Disproved(Exception):
    """Something the demo claims is not so."""


class Claims:
    """What was claimed and found true."""

    def __init__(self) -> None:
        self.count = 0

    def check(self, true: bool, claim: str) -> None:
        """Say the claim if it is true. Raises Disproved."""
        if not true:
            raise Disproved(claim)
        self.count += 1
        _console.print(f"  ok  {claim}", style="green")


def heading(text: str) -> None:
    _console.print(f"\n== {text}", style="bold")


def say(text: str = "") -> None:
    _console.print(f"  {text}" if text else "")


def alarm(text: str) -> None:
    _console.print(f"  !!  {text}", style="bold red")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they must be."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _console.print(f"      {line.rstrip()}", style="bold" if number == 0 else None)


class Stuck(Exception):
    """A run waits for something that nobody here will do."""


async def told(run: Run, *, speaker: str, after_message: int = 0) -> AsyncIterator[Event]:
    """The run's events, each of them said before it is handed on. Raises Stuck when it is parked."""
    speaking = False
    async for event in run.events(after_message=after_message):
        if isinstance(event, TextDelta):
            if not speaking:
                _console.print(f"  {speaker:9} ", style="cyan", end="")
            speaking = True
            _console.print(event.text, end="")
        elif speaking:
            speaking = False
            _console.print()
        if isinstance(event, StatusChanged) and event.status == "parked":
            raise Stuck(f"{run.id} is {event.doing}")
        if not isinstance(event, TextDelta | MessageFinished):
            _say_event(event)
        yield event


def _say_event(event: Event) -> None:
    match event:
        case ToolStarted():
            arguments = ", ".join(f"{name}={value!r}" for name, value in event.arguments.items())
            _console.print(f"  calls     {event.tool}({_short(arguments)})", style="cyan")
        case ToolProgress() if event.text:
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            _console.print(f"  progress  {event.text}{again}", style="dim")
        case ToolFinished():
            _console.print(f"  {'error' if event.is_error else 'result':9} {_short(event.text)}", style="dim")
        case Retrying():
            alarm(f"{event.call} failed ({event.error}); Temporal makes attempt {event.attempt}")
        case _:
            pass


def _short(text: str, most: int = 96) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
