"""The command line: `perdure --help`.

Nothing heavy is imported before a command runs, so that `--help` and completion are quick.
"""

import json
import sys
from collections import Counter
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

# Imported for the commands that they register.
from . import blobs, chat, control, deploys, extend, graph, redrive, runs, upgrade
from .loader import load_in_process
from .options import DONE, USAGE, Common, app, command, command_line, out, pretty, refuse, say
from .process import replace_process

if TYPE_CHECKING:
    from ..client.listing import RunInfo

__all__ = [
    "app",
    "blobs",
    "chat",
    "control",
    "deploys",
    "extend",
    "graph",
    "redrive",
    "run",
    "runs",
    "upgrade",
]

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="path/to/file.py, or package.module.")]


def run() -> int:
    """Run the command line of this process and return the exit code."""
    try:
        app()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else USAGE
    return DONE


def _print_version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"perdure {version_of('perdure')}\n")
        raise typer.Exit


@app.callback()
def _take_global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


# -- processes


@command("dev")
def dev(
    common: Common,
    *,
    files: Files,
    port: Annotated[int | None, typer.Option(help="Port of the server (default: 7233).")] = None,
    ui_port: Annotated[int | None, typer.Option(help="Port of the web UI (default: 1000 above).")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No web UI.")] = False,
    db: Annotated[
        str | None, typer.Option(help="File of the database (default: temporal.db in PERDURE_HOME).")
    ] = None,
) -> NoReturn:
    """Run server, UI and a worker for FILE in one; the worker restarts when a file changes."""
    if common.address or common.namespace:
        refuse(
            "`perdure dev` starts a server of its own; to use another one: perdure worker FILE --address ..."
        )
    options = command_line({"port": port, "ui_port": ui_port, "headless": headless, "db": db})
    replace_process("perdure.workers.dev", [*files, *options, *common.arguments("task_queue")])


@command("worker")
def worker(
    common: Common,
    *,
    files: Files,
    deployment: Annotated[str | None, typer.Option(help="Its worker deployment.")] = None,
    build: Annotated[str | None, typer.Option(help="Its version within the deployment.")] = None,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer /live and /ready there.")
    ] = None,
) -> NoReturn:
    """Serve the agents of FILE until SIGTERM."""
    options = command_line({"deployment": deployment, "build": build, "health": health})
    shared = common.arguments("address", "namespace", "task_queue")
    replace_process("perdure.workers", [*files, *options, *shared])


@command("doctor")
def doctor(common: Common) -> NoReturn:
    """Check server, worker, blobs, keys, clock and versions, and say what to do."""
    replace_process(
        "perdure.workers.observe.doctor", common.arguments("address", "namespace", "task_queue", "json")
    )


@command("replay-check")
def replay_check(
    common: Common,
    *,
    files: Files,
    histories: Annotated[
        str | None, typer.Option(metavar="DIR", help="Recorded histories instead of the server's.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="A visibility query, instead of all open runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many histories at most.")] = 200,
    record: Annotated[str | None, typer.Option(metavar="DIR", help="Record the histories there.")] = None,
) -> NoReturn:
    """Replay open runs and sessions with the code of FILE, before a deploy."""
    options = command_line({"histories": histories, "query": query, "limit": limit, "record": record})
    shared = common.arguments("address", "namespace", "task_queue", "json")
    replace_process("perdure.workers.deploys.replay", [*files, *options, *shared])


# -- agents


@command("agents")
async def agents(
    common: Common,
    *,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Agent files; none: agents of recent runs.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many recent runs to read.")] = 500,
) -> int:
    """List the agents that a FILE defines; without one, the agents of recent runs."""
    if files:
        return _print_defined(common, files)
    client = await common.connect()
    infos = [info async for info in client.list(most=most)]
    _print_recent(common, infos)
    return DONE


def _print_defined(common: Common, files: list[str]) -> int:
    from . import tables

    printed = load_in_process(*files, "--json")
    if isinstance(printed, int):
        return printed
    found = json.loads(printed)
    if common.json:
        out(common, found)
        return DONE
    table = tables.new_table("AGENT", "KIND", "MODEL", "TOOLS AND MEMBERS", "SPEC")
    for agent in found:
        models = ", then ".join(name for name in [agent["model"], *agent["fallbacks"]] if name)
        # An agent called as a tool is a tool and a member.
        parts = ", ".join(dict.fromkeys([*agent["tools"], *agent["members"]]))
        table.add_row(agent["name"], agent["kind"], models, parts, agent["spec_hash"][:12])
    pretty(table)
    return DONE


def _print_recent(common: Common, infos: "list[RunInfo]") -> None:
    from .. import display
    from . import tables

    counts = Counter(info.agent for info in infos if info.agent)
    # The newest run is first in the list, so reversed it is the one that stays.
    newest = {info.agent: info.started_at for info in reversed(infos)}
    if common.json:
        return out(common, [{"name": name, "runs": count} for name, count in counts.most_common()])
    table = tables.new_table("AGENT", "RUNS", "LATEST", right=("RUNS",))
    for name, count in counts.most_common():
        table.add_row(name, str(count), display.age(newest[name]))
    pretty(table)
    counted = display.plural(len(infos), "run")
    return say(f"from the latest {counted}; to see what a file defines: perdure agents FILE")


_ORDER: Final = (
    *("dev", "worker", "run", "chat", "watch"),
    *("list", "show", "transcript", "graph", "agents"),
    *("send", "approve", "deny", "redrive", "extend", "upgrade", "pause", "resume", "stop", "cancel"),
    *("replay-check", "doctor"),
)
"""Commands in the order of the help: as a newcomer meets them, whatever file they are in."""

app.registered_commands.sort(key=lambda registered: _ORDER.index(registered.name or ""))
