"""Commands for the blob store."""

from typing import Annotated, NoReturn

import typer

from .options import Common, app, command, command_line
from .process import replace_process

blobs = typer.Typer(name="blobs", help="Look after the blob store.", no_args_is_help=True)
app.add_typer(blobs)


@command("gc", under=blobs)
def collect(
    common: Common,
    *,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete them; else only say what would go.")
    ] = False,
    grace_days: Annotated[int, typer.Option(min=2, help="Days that a blob stays which nothing names.")] = 7,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="NAMESPACE", help="Another namespace whose runs use the store."),
    ] = None,
    ignore_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="A workflow type that never uses the store, and need not be read."),
    ] = None,
) -> NoReturn:
    """Find blobs that no run and no schedule names any more."""
    options = command_line({"delete": delete, "grace_days": grace_days})
    options += [word for namespace in also or () for word in ("--also", namespace)]
    options += [word for name in ignore_type or () for word in ("--ignore-type", name)]
    replace_process(
        "perdure.workers.observe.collect", [*options, *common.arguments("address", "namespace", "json")]
    )
