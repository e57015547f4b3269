"""An inspection of a run as people read it."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import display
from . import tables

if TYPE_CHECKING:
    from ..client.inspect import Inspection


def inspection_parts(inspection: "Inspection") -> list[Any]:
    """Return what to print of the inspection, from top to bottom."""
    status, result = inspection.status, inspection.result
    rows = [("run", inspection.id), ("state", inspection.state)]
    if status is not None:
        rows = tables.status_rows(inspection.id, status)
    if inspection.error and not (status and status.failure):
        rows.append(("error", display.short(inspection.error, 500)))
    for name, reason in result.unmet.items() if result else ():
        rows.append(("never ran", f"{name}: {reason}"))
    if inspection.problem:
        rows.append(("unknown", f"the rest: {inspection.problem}"))
    parts: list[Any] = [_grid(rows)]
    if inspection.nodes:
        parts += ["", tables.nodes(inspection.nodes)]
    if inspection.steps:
        parts += ["", tables.steps(inspection.steps)]
    if result is not None and result.output not in (None, ""):
        parts += ["", Text(tables.output(result.output))]
    return parts


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        style = tables.COLOURS.get(value.split(" ")[0], "") if name in ("status", "state") else ""
        # Text, not markup: brackets in a model's words are no styles.
        grid.add_row(name, Text(value, style=style))
    return grid
