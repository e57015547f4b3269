"""Pictures as text for a terminal. The same picture gives the same text, to the byte."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .order import find_back_edges, topological_order
from .picture import SYMBOLS, Arrow, Box, BoxState, Picture

COLOURS: Final[Mapping[BoxState, str]] = {
    "pending": "dim",
    "running": "cyan",
    "waiting": "yellow",
    "done": "green",
    "failed": "red",
    "skipped": "dim",
    "cancelled": "magenta",
}
_ALIGNED_CELLS: Final = 40
"""Width up to which names are aligned; a single longer one must not push all columns to the right."""


def render_text(picture: Picture) -> Text:
    """Return the picture for a terminal: its nodes from the entries on, each with the edges that leave it."""
    heading = f"\n{picture.subtitle}\n" if picture.subtitle else "\n"
    drawing = Text.assemble((picture.title, "bold"), heading)
    edges = [(arrow.source, arrow.target) for arrow in picture.arrows]
    back = find_back_edges(len(picture.boxes), edges, picture.entries)
    forward = [edge for number, edge in enumerate(edges) if number not in back]
    widths = [max((cell_len(cell) for cell in column), default=0) for column in _columns(picture.boxes)]
    for box in topological_order(len(picture.boxes), forward):
        drawing.append("\n")
        drawing.append_text(_row(picture.boxes[box], widths))
        for number, arrow in enumerate(picture.arrows):
            if arrow.source == box:
                target = picture.boxes[arrow.target]
                drawing.append_text(_edge(arrow, target, leads_back=number in back))
    for note in picture.notes:
        drawing.append(f"\n\n{note}", style="dim")
    return drawing


def _columns(boxes: Sequence[Box]) -> tuple[list[str], list[str]]:
    aligned = [box for box in boxes if cell_len(_name(box)) <= _ALIGNED_CELLS]
    return [_name(box) for box in aligned], [box.what for box in boxes]


def _name(box: Box) -> str:
    return f"{box.name} (entry)" if box.entry else box.name


def _row(box: Box, widths: Sequence[int]) -> Text:
    name, what = (
        # set_cell_size would also cut, and a name is never cut here.
        cell if cell_len(cell) > width else set_cell_size(cell, width)
        for cell, width in zip((_name(box), box.what), widths, strict=True)
    )
    row = Text.assemble((f"{SYMBOLS[box.state]} ", COLOURS[box.state]), (name, "bold"), f"  {what}")
    row.append(f"  {box.live}" if box.live else "", style=COLOURS[box.state])
    row.append("".join(f" · {part}" for part in (box.spent, box.join) if part))
    # Padding at the end would wrap on a narrow terminal.
    row.rstrip()
    return row


def _edge(arrow: Arrow, target: Box, *, leads_back: bool) -> Text:
    condition = f" [{arrow.label}]" if arrow.label else ""
    return Text.assemble(f"\n    {'↑' if leads_back else '→'} {target.name}", (condition, "italic"))
