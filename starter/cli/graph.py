"""The command `graph`: draw a graph, swarm or agent with the live state of a run."""

import json
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .loader import load_in_process
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
_REDRAWN_EVERY: Final = timedelta(seconds=0.5)


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
    # Else the text of a terminal would stand in a file that no viewer opens.
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
    # In a pipe each drawing would follow the last one, without end.
    if watch and not sys.stdout.isatty():
        refuse("--watch needs a terminal; leave it out to draw the run as it is now")
    if file is not None:
        defined = _load_spec(file, name)
        return defined if isinstance(defined, int) else _write(common, _View(resolved=defined), mermaid, to)
    found = await _find_run(await common.connect(), name, run)
    resolved = await _pinned_spec(found, name)
    if watch:
        return await _watch(found, resolved)
    view = _View(resolved=resolved, status=await found.reconciled_status(), run_id=found.id)
    return _write(common, view, mermaid, to)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A spec and, when there is a run, its status."""

    resolved: "ResolvedAgent"
    status: "RunStatus | None" = None
    run_id: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        status = self.status.model_dump(mode="json") if self.status is not None else None
        return {
            "run": self.run_id or None,
            "resolved": self.resolved.model_dump(mode="json"),
            "status": status,
        }

    def picture(self) -> "Picture":
        """Build the picture to render."""
        from ..draw.picture import build_picture

        return build_picture(self.resolved, self.status, run_id=self.run_id)


def _load_spec(file: str, name: str) -> "ResolvedAgent | int":
    """Return what the file defines under that name, or the exit code of the loader, which has said why."""
    from perdure.wire.spec import ResolvedAgent

    printed = load_in_process(file, "--spec", name)
    return printed if isinstance(printed, int) else ResolvedAgent.model_validate_json(printed)


async def _find_run(client: "Client", name: str, run_id: str | None) -> "Run":
    """Return the run of that id, or the newest run of that name.

    Raises:
        RunNotFound: there is no run of that name.

    """
    from perdure.errors import RunNotFound

    if run_id is not None:
        return client.get(run_id)
    try:
        return await client.newest_run(name)
    except RunNotFound as error:
        raise RunNotFound(
            f"{error}; draw it from its file: perdure graph {name} --file FILE, "
            f"or look for another run: {hint('list')}"
        ) from None


async def _pinned_spec(run: "Run", name: str) -> "ResolvedAgent":
    """Return the spec that the run was started with.

    Raises:
        InvalidRequest: it is a run of something else.

    """
    # The run's own spec: the file may define another one by now.
    resolved = await run.spec()
    if resolved.spec.name != name:
        refuse(f"run {run.id!r} is a run of {resolved.spec.name!r}, not of {name!r}")
    return resolved


# -- output


def _write(common: Common, view: _View, mermaid: bool, to: Path | None) -> int:
    if to is None:
        if not (mermaid or common.json):
            pretty(*_on_terminal(view))
            return DONE
        # Not by Rich, which would wrap long lines of a chart.
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
    from ..draw.mermaid import fence, render_mermaid

    if common.json:
        return json.dumps(view.plain(), ensure_ascii=False) + "\n"
    if not mermaid:
        return "\n".join(part.plain for part in _on_terminal(view)) + "\n"
    chart = render_mermaid(view.picture())
    return fence(chart) if to is not None and to.suffix.lower() in _MARKDOWN else chart


def _on_terminal(view: _View) -> "list[Text]":
    """Return the drawing, and the commands by which people can help the run on."""
    from rich.text import Text

    from ..draw.text import render_text
    from . import tables

    parts, status = [render_text(view.picture())], view.status
    if status is None:
        return parts
    if status.status == "parked":
        resume = tables.resume_hint(view.run_id, status.failure)
        parts.append(Text(f"\nparked: {tables.failure_line(status.failure)}\n  {resume}"))
    parts.extend(
        Text(f"\nwaits for: {tables.waiting_item(item)}\n  {tables.answer_hint(view.run_id, item)}")
        for item in status.waiting
    )
    return parts


async def _watch(run: "Run", resolved: "ResolvedAgent") -> int:
    """Draw the run again and again until it is over."""
    from rich.console import Console, Group
    from rich.live import Live

    parts: list[Text] = []
    # A transient picture: the last one is printed again below, where it stays in the scrollback.
    with Live(console=Console(highlight=False, emoji=False), auto_refresh=False, transient=True) as live:
        async for poll in run.poll_status(interval=_REDRAWN_EVERY):
            parts = _on_terminal(_View(resolved=resolved, status=poll.status, run_id=run.id))
            problem = f"\n{poll.problem}" if poll.problem else ""
            live.update(Group(*parts, problem), refresh=True)
    pretty(*parts)
    return DONE
