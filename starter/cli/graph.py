"""The command `graph`: draw a graph, swarm or agent with the live state of a run."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .options import DONE, Common, command, hint, pretty, refuse, say

if TYPE_CHECKING:
    from rich.text import Text

    from perdure.wire.results import RunStatus
    from perdure.wire.spec import ResolvedAgent

    from ..client.connect import Client
    from ..client.run import Run
    from ..draw.picture import Picture

_MERMAID: Final = frozenset({".mmd", ".mermaid", ".md", ".markdown"})
_MARKDOWN: Final = frozenset({".md", ".markdown"})
_PICTURES: Final = frozenset({".svg", ".png", ".pdf", ".jpg", ".jpeg", ".gif"})
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
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Write a Mermaid flowchart instead of text.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PATH", help="Write to this file: Mermaid if it ends in .mmd or .md, else text."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it again and again, until the run is over.")
    ] = False,
) -> int:
    """Draw a graph, swarm or agent, and where its run is."""
    if to is not None and to.suffix.lower() in _PICTURES:
        refuse(
            f"--out {to}: pictures are written as Mermaid; choose a .mmd or .md file, which GitHub and the "
            "Mermaid tools draw"
        )
    mermaid = mermaid or (to is not None and to.suffix.lower() in _MERMAID)
    if run is not None and file is not None:
        refuse("--run and --file: a run keeps the graph that it was started with; give only one of them")
    if watch and (file is not None or to is not None or mermaid or common.json):
        refuse("--watch draws a run as text on a terminal: leave out --file, --out, --mermaid and --json")
    if watch and not sys.stdout.isatty():
        refuse("--watch needs a terminal; leave it out to draw the run as it is now")
    if file is not None:
        defined = _load_spec(file, name)
        return defined if isinstance(defined, int) else _write(common, _View(resolved=defined), mermaid, to)
    found = await _find_run(await common.connect(), name, run)
    resolved = await _pinned_spec(found, name)
    if watch:
        return await _watch(found, resolved)
    return _write(common, await _read_view(found, resolved), mermaid, to)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A spec and, when there is a run, its status."""

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
        from ..draw.picture import build_picture

        return build_picture(self.resolved, self.status, run_id=self.run_id)


def _load_spec(file: str, name: str) -> "ResolvedAgent | int":
    """What the file defines under that name; the exit code when that cannot be had, the error being said.

    In a process of its own: whatever the file does when imported, it does not do here.
    """
    from perdure.wire.spec import ResolvedAgent

    asked = [sys.executable, "-m", "perdure.workers.load", file, "--spec", name]
    done = subprocess.run(asked, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        return done.returncode
    return ResolvedAgent.model_validate_json(done.stdout.splitlines()[-1])


async def _find_run(client: "Client", name: str, run_id: str | None) -> "Run":
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


async def _pinned_spec(run: "Run", name: str) -> "ResolvedAgent":
    """The spec that the run keeps."""
    resolved = await run.spec()
    if resolved.spec.name != name:
        refuse(f"run {run.id!r} is one of {resolved.spec.name!r}, not of {name!r}")
    return resolved


async def _read_view(run: "Run", resolved: "ResolvedAgent") -> _View:
    described = await run.describe()
    status = await run.status()
    state = described.status.name if described.status is not None else "RUNNING"
    return _View(resolved=resolved, status=_ended(status, state), run_id=run.id)


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


# -- output


def _write(common: Common, view: _View, mermaid: bool, to: Path | None) -> int:
    if to is None:
        if not (mermaid or common.json):
            pretty(*_on_terminal(view))
            return DONE
        sys.stdout.write(_render(common, view, mermaid, to))
        sys.stdout.flush()
        return DONE
    try:
        to.write_text(_render(common, view, mermaid, to), encoding="utf-8")
    except OSError as error:
        refuse(f"--out {to}: {error.strerror or error}")
    say(f"wrote {to}")
    return DONE


def _render(common: Common, view: _View, mermaid: bool, to: Path | None) -> str:
    from ..draw.mermaid import fenced, render_mermaid

    if common.json:
        return json.dumps(view.plain(), ensure_ascii=False) + "\n"
    if not mermaid:
        return "\n".join(part.plain for part in _on_terminal(view)) + "\n"
    chart = render_mermaid(view.picture())
    return fenced(chart) if to is not None and to.suffix.lower() in _MARKDOWN else chart


def _on_terminal(view: _View) -> "list[Text]":
    """Return the drawing, and the commands by which people can help the run on."""
    from rich.text import Text

    from ..draw.text import render_text
    from . import tables

    parts, status = [render_text(view.picture())], view.status
    if status is None:
        return parts
    if status.status == "parked":
        go_on = tables.how_to_go_on(view.run_id, status.failure)
        parts.append(Text(f"\nparked: {tables.failure(status.failure)}\n  {go_on}"))
    parts.extend(
        Text(f"\nwaits for: {tables.wanted(want)}\n  {tables.how_to_answer(view.run_id, want)}")
        for want in status.waiting
    )
    return parts


async def _watch(run: "Run", resolved: "ResolvedAgent") -> int:
    """Draw the run anew until it is over; a worker that is gone for a while is waited for."""
    from rich.console import Console, Group
    from rich.live import Live

    from perdure.errors import NotReachable
    from perdure.wire.results import ENDED

    view = await _read_view(run, resolved)
    with Live(console=Console(highlight=False), auto_refresh=False, transient=True) as live:
        problem = ""
        while view.status is None or view.status.status not in ENDED:
            live.update(Group(*_on_terminal(view), problem), refresh=True)
            await asyncio.sleep(_LOOK_AGAIN)
            try:
                view, problem = await _read_view(run, resolved), ""
            except NotReachable as error:
                problem = f"\n{error}"
    pretty(*_on_terminal(view))
    return DONE
