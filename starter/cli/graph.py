"""The command that draws graphs, swarms and agents, with the live state of a run."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from .options import DONE, Common, command, hint, pretty, refuse, say

if TYPE_CHECKING:
    from rich.text import Text

    from perdure.wire.results import RunStatus
    from perdure.wire.spec import ResolvedAgent

    from ..client.connect import Client
    from ..client.run import Run
    from ..draw.picture import Picture

Format = Literal["text", "mermaid", "svg"]

_BY_ENDING: Final[dict[str, Format]] = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}
_LOOK_AGAIN: Final = 0.5


@command("graph")
async def graph_(
    common: Common,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the graph, swarm or agent.")],
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="The run to show; none: the newest one of NAME.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Draw it as this file defines it; needs no server.")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Format | None, typer.Option(help="What to draw; none: by the ending of --out, else text.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Write it there; none: stdout.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it again and again, until the run is over.")
    ] = False,
) -> int:
    """Draw a graph, swarm or agent, and where its run is."""
    wanted: Format = format or _BY_ENDING.get(to.suffix.lower() if to is not None else "", "text")
    plain = to is None and wanted == "text" and not common.json
    if run is not None and file is not None:
        refuse("--run and --file: a run keeps the graph that it was started with; give one of them")
    if watch and (file is not None or not plain):
        refuse("--watch draws a run as text on a terminal: leave out --file, --out, --format and --json")
    if watch and not sys.stdout.isatty():
        refuse("--watch needs a terminal; leave it out to draw the run as it is now")
    if file is not None:
        defined = _of_file(file, name)
        return defined if isinstance(defined, int) else _drawn(common, _Sight(resolved=defined), wanted, to)
    found = await _found(await common.connect(), name, run)
    resolved = await _pinned(found, name)
    if watch:
        return await _watched(found, resolved)
    return _drawn(common, await _sight(found, resolved), wanted, to)


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What is to be drawn."""

    resolved: "ResolvedAgent"
    status: "RunStatus | None" = None
    run_id: str = ""

    def plain(self) -> dict[str, Any]:
        status = self.status.model_dump(mode="json") if self.status is not None else None
        return {
            "run": self.run_id or None,
            "resolved": self.resolved.model_dump(mode="json"),
            "status": status,
        }

    def picture(self) -> "Picture":
        from ..draw.picture import picture

        return picture(self.resolved, self.status, run_id=self.run_id)


def _of_file(file: str, name: str) -> "ResolvedAgent | int":
    """What the file defines under that name; the exit code when that cannot be had, the error being said.

    In a process of its own: whatever the file does when imported, it does not do here.
    """
    from perdure.wire.spec import ResolvedAgent

    asked = [sys.executable, "-m", "perdure.workers.load", file, "--spec", name]
    done = subprocess.run(asked, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        return done.returncode
    return ResolvedAgent.model_validate_json(done.stdout.splitlines()[-1])


async def _found(client: "Client", name: str, run_id: str | None) -> "Run":
    """The run asked for, else the newest one of that name.

    Raises:
        RunNotFound: there is none.

    """
    from perdure.errors import RunNotFound

    if run_id is not None:
        return client.get(run_id)
    async for info in client.list(agent=name, most=1):
        return client.get(info.id)
    raise RunNotFound(
        f"there is no run of {name!r}; draw it from its file: perdure graph {name} --file FILE, "
        f"or look for another: {hint('list')}"
    )


async def _pinned(run: "Run", name: str) -> "ResolvedAgent":
    """The spec that the run keeps."""
    resolved = await run.spec()
    if resolved.spec.name != name:
        refuse(f"run {run.id!r} is one of {resolved.spec.name!r}, not of {name!r}")
    return resolved


async def _sight(run: "Run", resolved: "ResolvedAgent") -> _Sight:
    described = await run.described()
    status = await run.status()
    state = described.status.name if described.status is not None else "RUNNING"
    return _Sight(resolved=resolved, status=_ended(status, state), run_id=run.id)


def _ended(status: "RunStatus", state: str) -> "RunStatus":
    """The status as the server's word corrects it: who is terminated cannot say so."""
    from perdure.wire.results import ENDED

    if state in ("RUNNING", "CONTINUED_AS_NEW") or status.status in ENDED:
        return status
    cut = [
        one.model_copy(update={"state": "cancelled"}) if one.state == "running" else one
        for one in status.nodes
    ]
    how = "completed" if state == "COMPLETED" else "cancelled" if state == "CANCELED" else "failed"
    return status.model_copy(update={"status": how, "nodes": cut, "waiting": []})


# -- showing it


def _drawn(common: Common, sight: _Sight, wanted: Format, to: Path | None) -> int:
    if to is None and wanted == "text" and not common.json:
        pretty(*_on_terminal(sight))
        return DONE
    written = _written(common, sight, wanted)
    if to is None:
        sys.stdout.write(written)
        sys.stdout.flush()
        return DONE
    try:
        to.write_text(written, encoding="utf-8")
    except OSError as error:
        refuse(f"--out {to}: {error.strerror or error}")
    say(f"wrote {to}")
    return DONE


def _written(common: Common, sight: _Sight, wanted: Format) -> str:
    from ..draw import svg
    from ..draw import text as draw

    if common.json:
        return json.dumps(sight.plain(), ensure_ascii=False) + "\n"
    match wanted:
        case "text":
            return "\n".join(thing.plain for thing in _on_terminal(sight)) + "\n"
        case "mermaid":
            return draw.mermaid(sight.picture())
        case "svg":
            return svg.svg(sight.picture())


def _on_terminal(sight: _Sight) -> "list[Text]":
    """The drawing, and what people can do for the run."""
    from rich.text import Text

    from ..draw import text as draw
    from . import tables as show

    things, status = [draw.text(sight.picture())], sight.status
    if status is None:
        return things
    if status.status == "parked":
        go_on = show.how_to_go_on(sight.run_id, status.failure)
        things.append(Text(f"\nparked: {show.failure(status.failure)}\n  {go_on}"))
    things.extend(
        Text(f"\nwaits for: {show.wanted(want)}\n  {show.how_to_answer(sight.run_id, want)}")
        for want in status.waiting
    )
    return things


async def _watched(run: "Run", resolved: "ResolvedAgent") -> int:
    """Draw the run anew until it is over; a worker that is gone for a while is waited for."""
    from rich.console import Console, Group
    from rich.live import Live

    from perdure.errors import NotReachable
    from perdure.wire.results import ENDED

    sight = await _sight(run, resolved)
    with Live(console=Console(highlight=False), auto_refresh=False, transient=True) as live:
        problem = ""
        while sight.status is None or sight.status.status not in ENDED:
            live.update(Group(*_on_terminal(sight), problem), refresh=True)
            await asyncio.sleep(_LOOK_AGAIN)
            try:
                sight, problem = await _sight(run, resolved), ""
            except NotReachable as error:
                problem = f"\n{error}"
    pretty(*_on_terminal(sight))
    return DONE
