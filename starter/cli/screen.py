"""Where the events of a run are shown: on a terminal, as plain lines, or as JSON."""

import re
import sys
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from perdure.wire.events import (
    ApprovalRequested,
    ChildEvent,
    Event,
    Finished,
    MessageFinished,
    NodeFinished,
    NodeStarted,
    ParkedBelow,
    PlanChanged,
    QuestionAsked,
    Retrying,
    StatusChanged,
    TextDelta,
    TextRestarted,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TreeEvent,
    TurnFinished,
)

from .. import display
from . import tables
from .active_runs import ActiveRuns, name_of

if TYPE_CHECKING:
    from perdure.wire.results import RunResult

_LINE: Final = 160
_TOKENS: Final = re.compile(r"\n|[^\S\n]+|\S+")
_LONG_WORD: Final = 40
"""Cells of a word that is shown before its end has come; some languages have no spaces."""


class Screen(Protocol):
    """Shows events, in order."""

    def show(self, event: TreeEvent) -> None:
        """Show the next event."""
        ...

    def note(self, line: str) -> None:
        """Say something that is no event."""
        ...

    def rest(self) -> None:
        """Stop what moves, and leave the cursor at the beginning of a line."""
        ...


class Json:
    """One event a line on stdout."""

    def show(self, event: TreeEvent) -> None:
        """Print it."""
        _line(sys.stdout, event.model_dump_json())

    def note(self, line: str) -> None:
        """Beside the events."""
        _line(sys.stderr, line)

    def rest(self) -> None:
        """Nothing moves."""


class Lines:
    """What happens as lines on stderr; on stdout the output, and nothing else: `x=$(perdure run ...)`."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, no_color=True)

    def show(self, event: TreeEvent) -> None:
        """Print it, when it is worth a line."""
        if isinstance(event, ChildEvent):
            line = line_below(event)
            return None if line is None else self._console.print(line)
        if isinstance(event, MessageFinished):
            said = display.short(event.text, _LINE)
            if said:
                self.note(f"step {event.step}: {said}")
            return None
        line = line_of(event)
        if line is not None:
            self._console.print(line)
        if isinstance(event, ApprovalRequested | QuestionAsked):
            want = event.approval if isinstance(event, ApprovalRequested) else event.question
            self.note(f"  answer with: {tables.answer_hint(self._run_id, want)}")
        if isinstance(event, Finished) and event.result is not None and event.result.output is not None:
            _line(sys.stdout, tables.output(event.result.output))
        return None

    def note(self, line: str) -> None:
        """A line of stderr."""
        self._console.print(line, markup=False)

    def rest(self) -> None:
        """Nothing moves."""


class Flow:
    """Text in pieces, its lines broken between words. Rich would wrap each piece as a line of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._held = ""
        """The beginning of a word whose end has not come."""

    @property
    def is_open(self) -> bool:
        """Whether a line is being written."""
        return bool(self._column or self._held)

    def write(self, text: str) -> None:
        """Write the next piece; the last word waits for its end, unless it is a long one."""
        tokens: list[str] = _TOKENS.findall(self._held + text)
        self._held = ""
        if tokens and not tokens[-1].isspace() and len(tokens[-1]) < _LONG_WORD:
            self._held = tokens.pop()
        for token in tokens:
            self._put(token)
        self._console.file.flush()

    def end_line(self) -> None:
        """Write what is held, and end an open line."""
        if self._held:
            self._put(self._held)
            self._held = ""
        if self._column:
            self._put("\n")
        self._console.file.flush()

    def _put(self, piece: str) -> None:
        width = self._console.width
        if piece == "\n":
            self._column = 0
        elif self._column and self._column + cell_len(piece) > width:
            self._console.file.write("\n")
            self._column = 0
            piece = piece.lstrip(" ")
        self._console.file.write(piece)
        self._column += 0 if piece == "\n" else cell_len(piece)
        self._column %= max(width, 1) + 1


class Terminal:
    """Text as it is written, tools as they run, and a line at the bottom that says what goes on."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._text = Flow(self._console)
        self._moving: Status | None = None
        self._doing = "starting"
        self._told = ""
        self._active = ActiveRuns()
        self._writing = ""
        """Whose text the open line is; the run's own is nobody's."""

    def show(self, event: TreeEvent) -> None:
        """Show it."""
        self._active.feed(event)
        match event:
            case ChildEvent():
                self._show_below(event)
                return
            case TextDelta():
                self._write("", display.clean(event.text), first=event.offset == 0)
            case MessageFinished():
                self._told = event.text
                self.rest()
            case ToolProgress():
                self._doing = f"{event.call_id}: {display.short(event.text, 60)}"
            case StatusChanged() if event.status != "parked":
                self._doing = display.short(event.doing, 100)
            case Finished():
                self._finish(event)
                return
            case TurnFinished():
                self._finish_turn(event)
                return
            case _:
                pass
        line = line_of(event)
        if line is not None and not isinstance(event, MessageFinished):
            self.rest()
            self._console.print(line)
        self._move()

    def _show_below(self, event: ChildEvent) -> None:
        """A line for what is worth one; the text of the only one that works, as it comes."""
        inner = event.event
        match inner:
            case TextDelta():
                self._stream(event, inner)
            case StatusChanged():
                self._active.does(event.run_id, display.short(inner.doing, 80))
            case ToolProgress():
                self._active.does(event.run_id, f"{inner.call_id}: {display.short(inner.text, 60)}")
            case MessageFinished() if self._active.was_shown(event, inner):
                self._told = inner.text  # a swarm's output: nobody wants to read it twice
                self.rest()
            case _:
                self._print(line_below(event))
        self._move()

    def _stream(self, event: ChildEvent, piece: TextDelta) -> None:
        other = self._text.is_open and self._writing != event.run_id
        if other or not self._active.streams(event, piece):
            return
        first = piece.offset == 0
        if first:
            self._write(event.run_id, f"{name_of(event.path)} | ", first=True)
        self._write(event.run_id, display.clean(piece.text), first=first)

    def _write(self, who: str, text: str, *, first: bool) -> None:
        self._still()
        if who != self._writing:
            self._text.end_line()
            self._writing = who
        self._text.write(text.lstrip("\n") if first else text)

    def _print(self, line: str | None) -> None:
        if line is not None:
            self.rest()
            self._console.print(line)

    def _finish(self, event: Finished) -> None:
        self.rest()
        result = event.result
        if result is not None and result.output not in (None, "", self._told):
            self._console.print(tables.output(result.output), markup=False)
        line = line_of(event)
        if line is not None:
            self._console.print(line)

    def _finish_turn(self, event: TurnFinished) -> None:
        self.rest()
        output = event.reply.output
        if output not in (None, "", self._told):
            self._console.print(tables.output(output), markup=False)
        line = line_of(event)
        if line is not None:
            self._console.print(line)

    def note(self, line: str) -> None:
        """A line among the others."""
        self.rest()
        self._console.print(line, markup=False)

    def rest(self) -> None:
        """Stop the moving line, end an open one."""
        self._still()
        self._text.end_line()

    def _move(self) -> None:
        """The moving line, unless text is being written where it would stand."""
        if self._text.is_open:
            return
        width = max(self._console.width - 4, 10)
        lines = [display.short(line, width) for line in (self._doing, *self._active.lines())]
        words = f"[dim]{escape(f'{chr(10)}  '.join(lines))}[/]"
        if self._moving is None:
            self._moving = self._console.status(words)
            self._moving.start()
        else:
            self._moving.update(words)

    def _still(self) -> None:
        if self._moving is not None:
            self._moving.stop()
            self._moving = None


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


def line_of(event: Event) -> str | None:  # noqa: C901 - one case an event
    """The event as a line of rich markup; None for what is no line."""
    match event:
        case ToolStarted():
            return (
                f"[cyan]→[/] {escape(display.short(display.format_call(event.tool, event.arguments), _LINE))}"
            )
        case ToolFinished():
            mark = "[red]✗[/]" if event.is_error else "[green]✓[/]"
            return f"{mark} {escape(event.tool)}[dim]: {escape(display.short(event.text, 100))}[/]"
        case Retrying():
            return (
                f"[yellow]↻[/] {escape(event.call)} is tried again (attempt {event.attempt}): "
                f"{escape(display.short(event.error, 200))}"
            )
        case TextRestarted():
            return f"[yellow]↻[/] the answer of step {event.step} begins anew (attempt {event.attempt})"
        case ApprovalRequested():
            called = tables.waiting_item(event.approval)
            return f"[yellow]?[/] [bold]{escape(called)}[/] waits for approval ({event.approval.call_id})"
        case QuestionAsked():
            return f"[yellow]?[/] the agent asks: [bold]{escape(tables.waiting_item(event.question))}[/]"
        case ParkedBelow():
            return f"[red]![/] {escape(tables.waiting_item(event.parked))}"
        case NodeStarted() | NodeFinished():
            return _below_line(event)
        case PlanChanged():
            return "\n".join(f"  {escape(line)}" for line in tables.plan_lines(event.items)) or None
        case StatusChanged():
            return _status_line(event)
        case Finished():
            return _end_line(event)
        case TurnFinished():
            return _turn_line(event)
        case _:
            return None


def line_below(event: ChildEvent) -> str | None:
    """What a run below does, as a line that begins with its name; None for what is no line."""
    inner = event.event
    match inner:
        case StatusChanged() | Finished():
            return None  # its end is told by the run that started it
        case MessageFinished():
            said = display.short(inner.text, _LINE)
            line = escape(f"step {inner.step}: {said}") if said else None
        case _:
            line = line_of(inner)
    before = f"[dim]{escape(name_of(event.path))} |[/] "
    return None if line is None else "\n".join(f"{before}{one}" for one in line.split("\n"))


def _below_line(event: NodeStarted | NodeFinished) -> str:
    if isinstance(event, NodeStarted):
        return f"[cyan]▸[/] {escape(event.key)}"
    good = event.state == "done" and event.stop_reason in (None, "end_turn", "handoff")
    bad = event.state == "failed"
    mark = "[green]✓[/]" if good else "[red]✗[/]" if bad else "[yellow]■[/]"
    how = event.state if event.stop_reason in (None, "end_turn") else event.stop_reason
    spent = [display.plural(event.steps, "step"), display.cost(event.cost_microusd)] if event.steps else []
    return f"{mark} {escape(event.key)}[dim]: {' · '.join([str(how), *spent])}[/]"


def _status_line(event: StatusChanged) -> str | None:
    match event.status:
        case "parked":
            return f"[red]![/] parked: {escape(tables.failure_line(event.failure))}"
        case "paused":
            return "[yellow]![/] paused"
        case "stopping":
            return "[yellow]![/] stopping"
        case _:
            return None


def _end_line(event: Finished) -> str:
    numbers = f"[dim]{escape(tables.result_line(event.result))}[/]" if event.result else ""
    if event.status == "failed":
        why = escape(tables.failure_line(event.error))
        return f"[red]✗ failed:[/] {why}" + (f"\n{numbers}" if event.result else "")
    good = event.status == "completed" and _is_natural(event.result)
    return f"[{'green' if good else 'yellow'}]{'✓' if good else '■'}[/] {numbers or event.status}"


def _turn_line(event: TurnFinished) -> str:
    reply = event.reply
    steps = f"turn {reply.turn}, {display.plural(reply.steps, 'step')}, {display.cost(reply.cost_microusd)}"
    if reply.error is not None:
        return (
            f"[red]✗ the turn failed:[/] {escape(tables.failure_line(reply.error))} [dim]({escape(steps)})[/]"
        )
    if reply.stop_reason not in (None, "end_turn"):
        return f"[yellow]■[/] the turn ended early: {reply.stop_reason} [dim]({escape(steps)})[/]"
    return f"[dim]{escape(steps)}[/]"


def _is_natural(result: "RunResult | None") -> bool:
    return result is not None and result.stop_reason == "end_turn"
