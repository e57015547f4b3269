"""What all commands share: options, exit codes, and errors told in one line."""

import asyncio
import functools
import inspect
import json
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

_MEANING: Final = {
    DONE: "the agent finished",
    FAILED: "the run failed",
    USAGE: "the call was wrong",
    PARKED: "the run is parked until `perdure resume`; one that tries again by itself is followed on",
    EARLY: "it ended early: by a limit, a stop, a cancel, a refusal",
    UNREACHABLE: "no server or no worker answers",
    INTERRUPTED: "Ctrl-C; the run goes on",
}
CODES: Final = "Exit codes:\n\n" + "\n\n".join(f"{code:>3}  {meaning}" for code, meaning in _MEANING.items())

app = typer.Typer(
    name="perdure",
    help="Durable AI agents on Temporal.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands; other files add theirs."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The run's id.")]

_PANEL: Final = "Common options"


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every command has."""

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
        """The client these options and the settings lead to."""
        from ..client.connect import connect

        return await connect(self.address, namespace=self.namespace, task_queue=self.task_queue)

    def arguments(self, *names: str) -> list[str]:
        """Those of the options that are given, as a command line again."""
        given = {name: getattr(self, name) for name in names}
        words = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value]
        return [word for name, value in words for word in ((name,) if value is True else (name, value))]


Body = Callable[..., int | None] | Callable[..., Coroutine[Any, Any, int | None]]


REACHED_BY: ContextVar[tuple[str, ...]] = ContextVar("REACHED_BY", default=())
"""The options by which this command found the server: whoever copies a hint needs them again."""


def hint(command: str) -> str:
    """A command to be copied and run as it is."""
    return " ".join(["perdure", command, *REACHED_BY.get()])


def command(name: str, *, epilog: str | None = None, under: typer.Typer = app) -> Callable[[Body], Body]:
    """Make a command of a function `(common, ...) -> exit code`, sync or async; None is 0.

    It stands beside the others, or `under` one that has several.
    """

    def register(body: Body) -> Body:
        @functools.wraps(body)
        def call(**given: Any) -> None:
            common = Common(**{field.name: given.pop(field.name) for field in fields(Common)})
            REACHED_BY.set(tuple(common.arguments("address", "namespace")))
            raise SystemExit(guarded(common, functools.partial(body, common, **given)))

        # Typer reads the signature: the body's own parameters, then those that all have.
        own = list(inspect.signature(body).parameters.values())[1:]
        shared = list(inspect.signature(Common).parameters.values())
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        under.command(name, epilog=epilog)(call)
        return body

    return register


def guarded(common: Common, body: Callable[[], Any]) -> int:
    """Run the body; an error becomes one line on stderr and an exit code."""
    try:
        done = body()
        return (asyncio.run(done) if inspect.iscoroutine(done) else done) or DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has had enough
        sys.stderr.close()
        return FAILED
    except PerdureError as error:
        if common.debug:
            traceback.print_exc()
        say_error(str(error))
        return code_of(error)
    except Exception as error:
        if common.debug:
            traceback.print_exc()
        said = " ".join(str(error).split())
        say_error(f"{type(error).__name__}: {said}; this is a bug of ours: --debug shows where")
        return FAILED


def code_of(error: PerdureError) -> int:
    """The exit code for an error of ours."""
    match error:
        case NotReachable():
            return UNREACHABLE
        case RunFailed():
            return FAILED
        case _:
            return USAGE


def out(common: Common, plain: Any, words: str = "") -> None:
    """The answer on stdout: JSON when asked for, else words."""
    sys.stdout.write((json.dumps(plain, ensure_ascii=False) if common.json else words) + "\n")
    sys.stdout.flush()


def pretty(*things: Any) -> None:
    """Rich things on stdout; where that is no terminal, in full width and without colours."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout.isatty():
        console = Console(highlight=False)
        for thing in things:
            console.print(thing)
        return
    console = Console(highlight=False, width=200, color_system=None)
    with console.capture() as captured:
        for thing in things:
            console.print(thing, soft_wrap=isinstance(thing, Text))
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def say(line: str = "") -> None:
    """Something for people, beside the data that stdout is for."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def say_error(message: str) -> None:
    """What is wrong, in the form every error has."""
    say(f"error: {message}")


def refuse(message: str) -> NoReturn:
    """End the command: it was called wrongly.

    Raises:
        InvalidRequest: always.

    """
    from perdure.errors import InvalidRequest

    raise InvalidRequest(message)
