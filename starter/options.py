"""What all commands share: options, exit codes, and errors told in one line."""

import asyncio
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from perdure.errors import NotReachable, PerdureError, RunFailed

if TYPE_CHECKING:
    from .client import Client

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
PARKED: Final = 3
EARLY: Final = 4
UNREACHABLE: Final = 5
INTERRUPTED: Final = 130

CODES: Final = """\
Exit codes: 0 the agent finished; 1 the run failed; 2 the call was wrong; 3 the run is parked;
4 it ended early (a limit, a stop, a cancel, a refusal); 5 no server or no worker; 130 Ctrl-C
(the run goes on)."""

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
        from .client import connect

        return await connect(self.address, namespace=self.namespace, task_queue=self.task_queue)

    def arguments(self, *names: str) -> list[str]:
        """Those of the options that are given, as a command line again."""
        given = {name: getattr(self, name) for name in names}
        words = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value]
        return [word for name, value in words for word in ((name,) if value is True else (name, value))]


Body = Callable[..., int | None] | Callable[..., Coroutine[Any, Any, int | None]]


def command(app: typer.Typer, name: str) -> Callable[[Body], Body]:
    """Make a command of a function `(common, ...) -> exit code`, sync or async; None is 0."""

    def register(body: Body) -> Body:
        @functools.wraps(body)
        def call(**given: Any) -> None:
            common = Common(**{field.name: given.pop(field.name) for field in fields(Common)})
            raise SystemExit(guarded(common, functools.partial(body, common, **given)))

        # Typer reads the signature: the body's own parameters, then those that all have.
        own = list(inspect.signature(body).parameters.values())[1:]
        shared = list(inspect.signature(Common).parameters.values())
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(call)
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


def say(line: str = "") -> None:
    """Something for people, beside the data that stdout is for."""
    print(line, file=sys.stderr, flush=True)


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
