"""Pictures as text for a terminal, and as Mermaid flowcharts.

The same picture gives the same drawing, to the byte.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .layers import back_arrows, topological
from .picture import Arrow, Box, BoxState, Picture

SYMBOLS: Final[Mapping[BoxState, str]] = {
    "pending": "○",
    "running": "▸",
    "waiting": "?",
    "done": "✓",
    "failed": "✗",
    "skipped": "»",
    "cancelled": "■",
}
COLOURS: Final[Mapping[BoxState, str]] = {
    "pending": "dim",
    "running": "cyan",
    "waiting": "yellow",
    "done": "green",
    "failed": "red",
    "skipped": "dim",
    "cancelled": "magenta",
}
_NAME_CELLS: Final = 40
"""Names up to this wide are aligned."""


# -- text


def text(of: Picture) -> Text:
    """The picture for a terminal: its nodes from the entries on, each with the edges that leave it."""
    made = Text.assemble((of.title, "bold"), f"\n{of.subtitle}\n" if of.subtitle else "\n")
    ends = [(arrow.source, arrow.target) for arrow in of.arrows]
    back = back_arrows(len(of.boxes), ends, of.entries)
    forward = [pair for at, pair in enumerate(ends) if at not in back]
    widths = [max((cell_len(part) for part in column), default=0) for column in _columns(of.boxes)]
    for number in topological(len(of.boxes), forward):
        made.append("\n")
        made.append_text(_row(of.boxes[number], widths))
        for at, arrow in enumerate(of.arrows):
            if arrow.source == number:
                made.append_text(_leaving(arrow, of.boxes[arrow.target], back=at in back))
    for note in of.notes:
        made.append(f"\n\n{note}", style="dim")
    return made


def _columns(boxes: Sequence[Box]) -> tuple[list[str], list[str]]:
    short = [box for box in boxes if cell_len(_name(box)) <= _NAME_CELLS]
    return [_name(box) for box in short], [box.what for box in boxes]


def _name(box: Box) -> str:
    return f"{box.name} (entry)" if box.entry else box.name


def _row(box: Box, widths: Sequence[int]) -> Text:
    name, what = _name(box), box.what
    padded = [
        part if cell_len(part) > width else set_cell_size(part, width)
        for part, width in zip((name, what), widths, strict=True)
    ]
    row = Text.assemble((f"{SYMBOLS[box.state]} ", COLOURS[box.state]), (padded[0], "bold"), f"  {padded[1]}")
    row.append(f"  {box.live}" if box.live else "", style=COLOURS[box.state])
    row.append("".join(f" · {part}" for part in (box.spent, box.join) if part))
    row.rstrip()
    return row


def _leaving(arrow: Arrow, target: Box, *, back: bool) -> Text:
    when = f" [{arrow.label}]" if arrow.label else ""
    return Text.assemble(f"\n    {'↑' if back else '→'} {target.name}", (when, "italic"))


# -- Mermaid

_FILLS: Final[Mapping[BoxState, str]] = {
    "pending": "fill:#f6f8fa,stroke:#6e7781,color:#1f2328",
    "running": "fill:#ddf4ff,stroke:#0969da,color:#0a3069,stroke-width:3px",
    "waiting": "fill:#fff8c5,stroke:#9a6700,color:#4d2d00,stroke-width:3px",
    "done": "fill:#dafbe1,stroke:#1a7f37,color:#033a16",
    "failed": "fill:#ffebe9,stroke:#cf222e,color:#660018,stroke-width:3px",
    "skipped": "fill:#f6f8fa,stroke:#6e7781,color:#57606a,stroke-dasharray:4",
    "cancelled": "fill:#fbefff,stroke:#8250df,color:#3e1f79,stroke-dasharray:4",
}
_SHAPES: Final[Mapping[str, tuple[str, str]]] = {"function": ("[", "]"), "agent": ("(", ")")}
_SPECIAL: Final = re.compile(r"[!-/:-@\[-`{-~]")


def mermaid(of: Picture) -> str:
    """The picture as a Mermaid flowchart. Names stand in labels only, where nothing in them is syntax."""
    lines = ["---", f"title: {_yaml(of)}", "---", "flowchart TD"]
    lines += [f"    n{number}{_shape(box)}:::{box.state}" for number, box in enumerate(of.boxes)]
    lines += [f'    e{entry}((" ")):::entry --> n{entry}' for entry in of.entries]
    for arrow in of.arrows:
        label = f'|"{_quoted(arrow.label)}"|' if arrow.label else ""
        lines.append(f"    n{arrow.source} -->{label} n{arrow.target}")
    lines.append("    classDef entry fill:#57606a,stroke:#57606a")
    used = {box.state for box in of.boxes}
    lines += [f"    classDef {state} {style}" for state, style in _FILLS.items() if state in used]
    return "\n".join(lines) + "\n"


def _shape(box: Box) -> str:
    opens, closes = _SHAPES.get(box.kind, ("[[", "]]"))
    label = "<br/>".join(_quoted(line) for line in (f"{SYMBOLS[box.state]}\u00a0{box.name}", *box.lines))
    return f'{opens}"{label}"{closes}'


def _quoted(text: str) -> str:
    """All that could be syntax of Mermaid, Markdown or HTML, by its number."""
    return _SPECIAL.sub(lambda sign: f"#{ord(sign[0])};", text)


def _yaml(of: Picture) -> str:
    """A title in quotes, as YAML reads it and HTML around it does not."""
    words = " · ".join(part for part in (of.title, of.subtitle, *of.notes) if part)
    return json.dumps(words, ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")
