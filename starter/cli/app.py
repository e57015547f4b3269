"""The command line: `perdure --help`.

Nothing heavy is imported before a command runs, so that `--help` and completion are quick.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import chat, deploys, redrive, runs

# Imported for the commands they add, in the order of the help.
from . import control as acts
from . import graph as graphs
from .options import DONE, USAGE, Common, app, command, out, pretty, refuse, say

if TYPE_CHECKING:
    from ..client.connect import RunInfo

__all__ = ["acts", "app", "chat", "deploys", "graphs", "redrive", "run", "runs"]

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="path/to/file.py, or package.module.")]


def run() -> int:
    """Run the command line of this process; gives the exit code."""
    try:
        app()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else USAGE
    return DONE


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"perdure {version_of('perdure')}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


# -- processes


@command("dev")
def dev(
    common: Common,
    *,
    files: Files,
    port: Annotated[int | None, typer.Option(help="Port of the server. [7233]")] = None,
    ui_port: Annotated[int | None, typer.Option(help="Port of the web UI. [the server's + 1000]")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No web UI.")] = False,
    db: Annotated[str | None, typer.Option(help="The database's file. [temporal.db in PERDURE_HOME]")] = None,
) -> NoReturn:
    """Server, UI and a worker for FILE in one, restarted when a file changes."""
    if common.address or common.namespace:
        refuse("`perdure dev` starts a server of its own; for another one: perdure worker FILE --address ...")
    options = _options(port=port, ui_port=ui_port, headless=headless, db=db)
    _become("perdure.workers.dev", [*files, *options, *common.arguments("task_queue")])


@command("worker")
def worker(
    common: Common,
    *,
    files: Files,
    deployment: Annotated[str | None, typer.Option(help="Worker deployment it belongs to.")] = None,
    build: Annotated[str | None, typer.Option(help="Its version within the deployment.")] = None,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer /live and /ready there.")
    ] = None,
) -> NoReturn:
    """Serve the agents of FILE until told to stop."""
    options = _options(deployment=deployment, build=build, health=health)
    shared = common.arguments("address", "namespace", "task_queue")
    _become("perdure.workers", [*files, *options, *shared])


@command("doctor")
def doctor(common: Common) -> NoReturn:
    """Look for what may be wrong: server, worker, blobs, keys, clock, versions."""
    _become("perdure.workers.observe.doctor", common.arguments("address", "namespace", "task_queue", "json"))


def _options(**given: Any) -> list[str]:
    words = [
        (f"--{name.replace('_', '-')}", value) for name, value in given.items() if value not in (None, False)
    ]
    return [word for name, value in words for word in ((name,) if value is True else (name, str(value)))]


def _become(module: str, arguments: list[str]) -> NoReturn:
    """Be that process from here on: workers are not known here by anything but their name."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell wanted


@command("replay-check")
def replay_check(
    common: Common,
    *,
    files: Files,
    histories: Annotated[
        str | None, typer.Option(metavar="DIR", help="Histories kept as JSON, in place of the server's.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="A visibility query, in place of all that is open.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many histories.")] = 200,
    record: Annotated[str | None, typer.Option(metavar="DIR", help="Keep the histories there.")] = None,
) -> NoReturn:
    """Replay open runs and sessions with the code of FILE, before it is given any."""
    options = _options(histories=histories, query=query, limit=limit, record=record)
    shared = common.arguments("address", "namespace", "task_queue", "json")
    _become("perdure.workers.deploys.replay", [*files, *options, *shared])


# -- agents


@command("agents")
async def agents(
    common: Common,
    *,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Files to look into; none: recent runs.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many recent runs to look at.")] = 500,
) -> int:
    """Tell which agents a FILE defines; without one, which had runs lately."""
    if files:
        return _agents_of_files(common, files)
    client = await common.connect()
    infos = [info async for info in client.list(most=most)]
    _agents_of_runs(common, infos)
    return DONE


def _agents_of_files(common: Common, files: list[str]) -> int:
    from . import tables

    # In a process of its own: whatever the file does when imported, it does not do here.
    command = [sys.executable, "-m", "perdure.workers.load", *files, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        return done.returncode
    found = json.loads(done.stdout.splitlines()[-1])
    if common.json:
        out(common, found)
        return DONE
    table = tables.new_table("AGENT", "KIND", "MODEL", "TOOLS AND MEMBERS", "SPEC")
    for agent in found:
        chain = ", then ".join(name for name in [agent["model"], *agent["fallbacks"]] if name)
        used = ", ".join(dict.fromkeys([*agent["tools"], *agent["members"]]))
        table.add_row(agent["name"], agent["kind"], chain, used, agent["spec_hash"][:12])
    pretty(table)
    return DONE


def _agents_of_runs(common: Common, infos: "list[RunInfo]") -> None:
    from .. import display
    from . import tables

    tally = Counter(info.agent for info in infos if info.agent)
    latest = {info.agent: info.started_at for info in reversed(infos)}
    found = [{"name": name, "runs": count} for name, count in tally.most_common()]
    if common.json:
        return out(common, found)
    table = tables.new_table("AGENT", "RUNS", "LATEST", right=("RUNS",))
    for name, count in tally.most_common():
        table.add_row(name, str(count), display.age(latest[name]))
    pretty(table)
    return say(
        f"from the latest {display.plural(len(infos), 'run')}; what a file defines: perdure agents FILE"
    )
