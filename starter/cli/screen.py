"""Screens that show the events of a run: a terminal, plain lines, JSON."""

import re
import sys
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from perdure.wire.events import (
    AgentChanged,
    ApprovalRequested,
    ChildEvent,
    Event,
    EventsMissing,
    Extended,
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
from .active_runs import ActiveRuns, label

if TYPE_CHECKING:
    from perdure.wire.results import RunResult

_LINE: Final = 160
"""Characters of a line that shows text of a model or a tool."""
_TOKENS: Final = re.compile(r"\n|[^\S\n]+|\S+")
_LONG_WORD: Final = 40
"""Cells from which on a word is shown before its end has come: some languages have no spaces."""


class Screen(Protocol):
    """A place where events are shown, in order."""

    def show(self, event: TreeEvent) -> None:
        """Show the next event."""
        ...

    def note(self, line: str) -> None:
        """Show a line that is no event."""
        ...

    def rest(self) -> None:
        """Stop the moving line, and leave the cursor at the beginning of a line."""
        ...


class Json:
    """JSON: one event a line on stdout."""

    def show(self, event: TreeEvent) -> None:
        """Print the event."""
        _write_line(sys.stdout, event.model_dump_json())

    def note(self, line: str) -> None:
        """Print the line on stderr, beside the events."""
        _write_line(sys.stderr, line)

    def rest(self) -> None:
        """Do nothing: no line moves."""


class Lines:
    """Plain lines on stderr, and only the run's output on stdout: `x=$(perdure run ...)`."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        # Unwrapped: a log has no width, and a broken line cannot be searched for.
        self._console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, no_color=True)

    def show(self, event: TreeEvent) -> None:
        """Print the event, if it is worth a line."""
        if isinstance(event, ChildEvent):
            line = child_line(event)
            return None if line is None else self._console.print(line)
        if isinstance(event, MessageFinished):
            text = display.short(event.text, _LINE)
            if text:
                self.note(f"step {event.step}: {text}")
            return None
        line = event_line(event)
        if line is not None:
            self._console.print(line)
        if isinstance(event, ApprovalRequested | QuestionAsked):
            item = event.approval if isinstance(event, ApprovalRequested) else event.question
            self.note(f"  answer with: {tables.answer_hint(self._run_id, item)}")
        if isinstance(event, Finished) and event.result is not None and event.result.output is not None:
            _write_line(sys.stdout, tables.output(event.result.output))
        return None

    def note(self, line: str) -> None:
        """Print the line on stderr."""
        self._console.print(line, markup=False)

    def rest(self) -> None:
        """Do nothing: no line moves."""


class TextFlow:
    """Text that comes in pieces, with its lines broken between words.

    Rich would wrap each piece as a line of its own.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._unfinished = ""
        """Beginning of a word whose end has not come."""

    @property
    def is_open(self) -> bool:
        """True while a line is open."""
        return bool(self._column or self._unfinished)

    def write(self, text: str) -> None:
        """Write the next piece; the last word waits for its end, unless it is a long one."""
        tokens: list[str] = _TOKENS.findall(self._unfinished + text)
        self._unfinished = ""
        if tokens and not tokens[-1].isspace() and len(tokens[-1]) < _LONG_WORD:
            self._unfinished = tokens.pop()
        for token in tokens:
            self._put(token)
        self._console.file.flush()

    def end_line(self) -> None:
        """Write an unfinished word, and end an open line."""
        if self._unfinished:
            self._put(self._unfinished)
            self._unfinished = ""
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
        # A word wider than the line has been wrapped by the terminal itself.
        self._column %= max(width, 1) + 1


class Terminal:
    """Terminal: text as it is written, tools as they run, and a moving line for what goes on now."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, emoji=False)
        self._text = TextFlow(self._console)
        self._moving: Status | None = None
        self._doing = "starting"
        self._shown_text = ""
        """The newest finished text; an output that equals it is not shown again."""
        self._active = ActiveRuns()
        self._writer = ""
        """Id of the run below whose text the open line is; "" for the run itself."""

    def show(self, event: TreeEvent) -> None:
        """Show the event."""
        self._active.feed(event)
        match event:
            case ChildEvent():
                self._show_child(event)
                return
            case TextDelta():
                self._write("", display.clean(event.text), first=event.offset == 0)
            case MessageFinished():
                self._shown_text = event.text
                self.rest()
            case ToolProgress():
                self._doing = f"{event.call_id}: {display.short(event.text, 60)}"
            # Of a parked run nothing moves: a line of its own says why.
            case StatusChanged() if event.status != "parked":
                self._doing = display.short(event.doing, 100)
            case Finished():
                self._finish(event, None if event.result is None else event.result.output)
                return
            case TurnFinished():
                self._finish(event, event.reply.output)
                return
            case _:
                pass
        # The text of a finished message has been written as it came.
        self._print(None if isinstance(event, MessageFinished) else event_line(event))
        self._move()

    def _show_child(self, event: ChildEvent) -> None:
        """Show an event of a run below: a line, or its text as it comes while it is active alone."""
        inner = event.event
        match inner:
            case TextDelta():
                self._stream(event, inner)
            case StatusChanged():
                self._active.set_doing(event.run_id, display.short(inner.doing, 80))
            case ToolProgress():
                self._active.set_doing(event.run_id, f"{inner.call_id}: {display.short(inner.text, 60)}")
            case MessageFinished() if self._active.was_streamed(event, inner):
                self._shown_text = inner.text  # a swarm ends with it as its output
                self.rest()
            case _:
                self._print(child_line(event))
        self._move()

    def _stream(self, event: ChildEvent, piece: TextDelta) -> None:
        # The first piece that comes while another text is open is not taken, so all of that text waits.
        is_busy = self._text.is_open and self._writer != event.run_id
        if is_busy or not self._active.take_piece(event, piece):
            return
        first = piece.offset == 0
        if first:
            self._write(event.run_id, f"{label(event.path)} | ", first=True)
        self._write(event.run_id, display.clean(piece.text), first=first)

    def _write(self, run_id: str, text: str, *, first: bool) -> None:
        self._stop_moving()
        if run_id != self._writer:
            self._text.end_line()
            self._writer = run_id
        # Models like to begin with empty lines.
        self._text.write(text.lstrip("\n") if first else text)

    def _print(self, line: str | None) -> None:
        if line is not None:
            self.rest()
            self._console.print(line)

    def _finish(self, event: Finished | TurnFinished, output: object) -> None:
        """Show the output, unless it has just been shown as the last text, and a line for the end."""
        self.rest()
        if output not in (None, "", self._shown_text):
            self._console.print(tables.output(output), markup=False)
        # No `_move` after it: nothing goes on.
        self._print(event_line(event))

    def note(self, line: str) -> None:
        """Print the line below the events."""
        self.rest()
        self._console.print(line, markup=False)

    def rest(self) -> None:
        """Stop the moving line, and end an open one."""
        self._stop_moving()
        self._text.end_line()

    def _move(self) -> None:
        """Show the moving line, unless text is being written where it would stand."""
        if self._text.is_open:
            return
        # Room for the moving sign: Rich could not erase a line that wrapped.
        width = max(self._console.width - 4, 10)
        lines = [display.short(line, width) for line in (self._doing, *self._active.lines())]
        markup = f"[dim]{escape(f'{chr(10)}  '.join(lines))}[/]"
        if self._moving is None:
            self._moving = self._console.status(markup)
            self._moving.start()
        else:
            self._moving.update(markup)

    def _stop_moving(self) -> None:
        if self._moving is not None:
            self._moving.stop()
            self._moving = None


def _write_line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    # Stdout of a pipe is buffered by the block, and its reader waits for this event.
    stream.flush()


def event_line(event: Event) -> str | None:  # noqa: C901 - one case an event
    """Return the event as a line of Rich markup, or None when it is not worth a line."""
    match event:
        case ToolStarted():
            call = display.short(display.format_call(event.tool, event.arguments), _LINE)
            return f"[cyan]→[/] {escape(call)}"
        case ToolFinished():
            mark = "[red]✗[/]" if event.is_error else "[green]✓[/]"
            return f"{mark} {escape(event.tool)}[dim]: {escape(display.short(event.text, 100))}[/]"
        case Retrying():
            return (
                f"[yellow]↻[/] {escape(event.call)} is tried again (attempt {event.attempt}): "
                f"{escape(display.short(event.error, 200))}"
            )
        case EventsMissing():
            return f"[yellow]![/] some of what happened is not shown: {escape(event.reason)}"
        case TextRestarted():
            return f"[yellow]↻[/] the answer of step {event.step} begins anew (attempt {event.attempt})"
        case ApprovalRequested():
            call = tables.waiting_item(event.approval)
            return f"[yellow]?[/] [bold]{escape(call)}[/] waits for approval ({event.approval.call_id})"
        case QuestionAsked():
            question = event.question
            return (
                f"[yellow]?[/] the agent asks: [bold]{escape(tables.waiting_item(question))}[/] "
                f"({question.call_id})"
            )
        case ParkedBelow():
            return f"[red]![/] {escape(tables.waiting_item(event.parked))}"
        case NodeStarted() | NodeFinished():
            return _node_line(event)
        case PlanChanged():
            return "\n".join(f"  {escape(line)}" for line in tables.plan_lines(event.items)) or None
        case Extended() | AgentChanged():
            return _change_line(event)
        case StatusChanged():
            return _status_line(event)
        case Finished():
            return _end_line(event)
        case TurnFinished():
            return _turn_line(event)
        case _:
            return None


def child_line(event: ChildEvent) -> str | None:
    """Return an event of a run below as a line that begins with its name, or None when not worth one."""
    inner = event.event
    match inner:
        case StatusChanged() | Finished():
            return None  # the run that started it reports its end
        case MessageFinished():
            text = display.short(inner.text, _LINE)
            line = escape(f"step {inner.step}: {text}") if text else None
        case _:
            line = event_line(inner)
    prefix = f"[dim]{escape(label(event.path))} |[/] "
    return None if line is None else "\n".join(f"{prefix}{row}" for row in line.split("\n"))


def _change_line(event: Extended | AgentChanged) -> str:
    """Say who has given the run more, or its session another version of the agent."""
    if isinstance(event, Extended):
        made = event.extension
        granted = ", ".join(f"{name}={value}" for name, value in made.limits.items())
        return f"[yellow]+[/] {escape(made.by or 'a person')} has granted more: {escape(display.short(granted, 200))}"
    upgrade = event.upgrade
    by = f" by {escape(upgrade.by)}" if upgrade.by else ""
    return f"[yellow]+[/] another version of the agent{by}: {upgrade.before[:12]} → {upgrade.after[:12]}"


def _node_line(event: NodeStarted | NodeFinished) -> str:
    if isinstance(event, NodeStarted):
        return f"[cyan]▸[/] {escape(event.key)}"
    # A limit that was reached ends a run as done, and yet deserves a look.
    good = event.state == "done" and event.stop_reason in (None, "end_turn", "handoff")
    bad = event.state == "failed"
    mark = "[green]✓[/]" if good else "[red]✗[/]" if bad else "[yellow]■[/]"
    end = event.state if event.stop_reason in (None, "end_turn") else event.stop_reason
    spent = [display.plural(event.steps, "step"), display.cost(event.cost_microusd)] if event.steps else []
    return f"{mark} {escape(event.key)}[dim]: {' · '.join([str(end), *spent])}[/]"


def _status_line(event: StatusChanged) -> str | None:
    match event.status:
        case "parked":
            return f"[red]![/] parked: {escape(tables.failure_line(event.failure))}"
        case "paused":
            return "[yellow]![/] paused"
        case "stopping":
            return "[yellow]![/] stopping"
        case "thinking" if event.failure is not None:
            return f"[yellow]![/] cannot begin: {escape(display.short(event.failure.message, 500))}"
        case _:
            return None


def _end_line(event: Finished) -> str:
    numbers = f"[dim]{escape(tables.result_line(event.result))}[/]" if event.result else ""
    if event.status == "failed":
        cause = escape(tables.failure_line(event.error))
        return f"[red]✗ failed:[/] {cause}" + (f"\n{numbers}" if event.result else "")
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
