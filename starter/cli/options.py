"""Options, exit codes and errors that all commands share."""

import asyncio
import functools
import inspect
import json
import logging
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from perdure.errors import NotReachable, PerdureError, RunFailed

if TYPE_CHECKING:
    from ..client.connect import Client

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
PARKED: Final = 3
EARLY: Final = 4
UNREACHABLE: Final = 5
INTERRUPTED: Final = 130

_MEANINGS: Final = {
    DONE: "the agent finished",
    FAILED: "the run failed",
    USAGE: "the call was wrong",
    PARKED: "the run is parked until `perdure resume`; a run that retries by itself is followed on. Or no worker "
    "serves its agent",
    EARLY: "it ended early: by a limit, a stop, a cancel, a refusal",
    UNREACHABLE: "no server or no worker answers",
    INTERRUPTED: "Ctrl-C; the run goes on",
}
CODES: Final = "Exit codes:\n\n" + "\n\n".join(f"{code:>3}  {text}" for code, text in _MEANINGS.items())

app = typer.Typer(
    name="perdure",
    help="Durable AI agents on Temporal.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Rich would print a traceback of many pages; `--debug` prints a plain one.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands; the other files add theirs."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The run's id.")]

_PANEL: Final = "Common options"


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command has."""

    address: Annotated[
        str | None,
        typer.Option(help="Temporal server, host:port [PERDURE_ADDRESS].", rich_help_panel=_PANEL),
    ] = None
    namespace: Annotated[
        str | None, typer.Option(help="Temporal namespace [PERDURE_NAMESPACE].", rich_help_panel=_PANEL)
    ] = None
    task_queue: Annotated[
        str | None,
        typer.Option(help="Task queue of the agents [PERDURE_TASK_QUEUE].", rich_help_panel=_PANEL),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_PANEL)] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL)
    ] = False

    async def connect(self) -> "Client":
        """Connect to the server that these options and the settings name."""
        from ..client.connect import connect

        if not self.debug:  # the command itself says what became of its calls
            logging.getLogger("temporalio.core").setLevel(logging.CRITICAL)
        return await connect(self.address, namespace=self.namespace, task_queue=self.task_queue)

    def arguments(self, *names: str) -> list[str]:
        """Return these options as a command line again, as far as they are set."""
        return command_line({name: getattr(self, name) or None for name in names})


def command_line(options: dict[str, Any]) -> list[str]:
    """Return options as words of a command line; None and False are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


Body = Callable[..., int | None] | Callable[..., Coroutine[Any, Any, int | None]]


CONNECTION_OPTIONS: ContextVar[tuple[str, ...]] = ContextVar("CONNECTION_OPTIONS", default=())
"""Options by which this command found the server; a hint that is copied needs the same ones."""


def hint(command: str) -> str:
    """Return a command line that can be copied and run as it is."""
    return " ".join(["perdure", command, *CONNECTION_OPTIONS.get()])


def command(name: str, *, epilog: str | None = None, under: typer.Typer = app) -> Callable[[Body], Body]:
    """Register a function `(common, ...) -> exit code`, sync or async, as a command; None is code 0.

    The command stands beside the rest, or `under` one that groups several.
    """

    def register(body: Body) -> Body:
        @functools.wraps(body)
        def call(**values: Any) -> None:
            common = Common(**{field.name: values.pop(field.name) for field in fields(Common)})
            CONNECTION_OPTIONS.set(tuple(common.arguments("address", "namespace")))
            raise SystemExit(run_guarded(common, functools.partial(body, common, **values)))

        # Typer reads the signature: the body's own parameters, then the common ones.
        own = list(inspect.signature(body).parameters.values())[1:]
        shared = list(inspect.signature(Common).parameters.values())
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        under.command(name, epilog=epilog)(call)
        return body

    return register


def run_guarded(common: Common, body: Callable[[], Any]) -> int:
    """Run the body and return the exit code; an error becomes one line on stderr."""
    try:
        result = body()
        return (asyncio.run(result) if inspect.iscoroutine(result) else result) or DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has had enough
        # Closed, or Python would complain at exit about what it could not flush.
        sys.stderr.close()
        return FAILED
    except PerdureError as error:
        if common.debug:
            traceback.print_exc()
        say_error(str(error))
        return exit_code_of(error)
    except Exception as error:
        if common.debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        say_error(f"{type(error).__name__}: {message}; this is a bug of Perdure: --debug shows where")
        return FAILED


def exit_code_of(error: PerdureError) -> int:
    """Return the exit code for an error of ours."""
    match error:
        case NotReachable():
            return UNREACHABLE
        case RunFailed():
            return FAILED
        case _:
            return USAGE


def out(common: Common, plain: Any, text: str = "") -> None:
    """Print the answer on stdout: as JSON if the options ask for it, else as text."""
    sys.stdout.write((json.dumps(plain, ensure_ascii=False) if common.json else text) + "\n")
    sys.stdout.flush()


def pretty(*parts: Any) -> None:
    """Print Rich parts on stdout; where that is no terminal, in full width and without colours."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout.isatty():
        console = Console(highlight=False, emoji=False)
        for part in parts:
            console.print(part)
        return
    console = Console(highlight=False, emoji=False, width=200, color_system=None)
    # Captured, to strip the spaces with which Rich fills up lines.
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, Text))
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def say(line: str = "") -> None:
    """Print a line for people on stderr; stdout is for data."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def say_error(message: str) -> None:
    """Print an error in the form that every error has."""
    say(f"error: {message}")


def refuse(message: str) -> NoReturn:
    """End the command as called wrongly.

    Raises:
        InvalidRequest: always.

    """
    from perdure.errors import InvalidRequest

    raise InvalidRequest(message)
