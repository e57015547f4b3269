"""Pictures as Mermaid flowcharts. The same picture gives the same chart, to the byte."""

import json
import re
from collections.abc import Mapping
from typing import Final

from .picture import SYMBOLS, Box, BoxState, Picture

# Light fills with dark text of their own: readable on GitHub's light and on its dark theme.
_STYLES: Final[Mapping[BoxState, str]] = {
    "pending": "fill:#f6f8fa,stroke:#6e7781,color:#1f2328",
    "running": "fill:#ddf4ff,stroke:#0969da,color:#0a3069,stroke-width:3px",
    "waiting": "fill:#fff8c5,stroke:#9a6700,color:#4d2d00,stroke-width:3px",
    "done": "fill:#dafbe1,stroke:#1a7f37,color:#033a16",
    "failed": "fill:#ffebe9,stroke:#cf222e,color:#660018,stroke-width:3px",
    "skipped": "fill:#f6f8fa,stroke:#6e7781,color:#57606a,stroke-dasharray:4",
    "cancelled": "fill:#fbefff,stroke:#8250df,color:#3e1f79,stroke-dasharray:4",
}
_SHAPES: Final[Mapping[str, tuple[str, str]]] = {"function": ("[", "]"), "agent": ("(", ")")}
_SUBROUTINE: Final = ("[[", "]]")
"""Shape of a node that is itself a swarm or a graph."""

_PUNCTUATION: Final = re.compile(r"[!-/:-@\[-`{-~]")


def render_mermaid(picture: Picture) -> str:
    """Return the picture as a Mermaid flowchart.

    Names stand in labels only, and nodes are numbered: whatever a name holds, it is never syntax.
    """
    lines = ["---", f"title: {_quote_title(picture)}", "---", "flowchart TD"]
    lines += [f"    n{number}{_node(box)}:::{box.state}" for number, box in enumerate(picture.boxes)]
    lines += [f'    e{entry}((" ")):::entry --> n{entry}' for entry in picture.entries]
    for arrow in picture.arrows:
        # Mermaid takes no empty label.
        label = f'|"{_escape(arrow.label)}"|' if arrow.label else ""
        lines.append(f"    n{arrow.source} -->{label} n{arrow.target}")
    lines.append("    classDef entry fill:#57606a,stroke:#57606a")
    used = {box.state for box in picture.boxes}
    lines += [f"    classDef {state} {style}" for state, style in _STYLES.items() if state in used]
    return "\n".join(lines) + "\n"


def fence(chart: str) -> str:
    """Return the chart as a block of a Markdown file, which GitHub shows drawn."""
    return f"```mermaid\n{chart}```\n"


def _node(box: Box) -> str:
    opening, closing = _SHAPES.get(box.kind, _SUBROUTINE)
    # A no-break space: Mermaid would wrap between the symbol and the name.
    label = "<br/>".join(_escape(line) for line in (f"{SYMBOLS[box.state]}\u00a0{box.name}", *box.lines))
    return f'{opening}"{label}"{closing}'


def _escape(text: str) -> str:
    """Return the text with each sign that Mermaid, Markdown or HTML could read as syntax by its number."""
    return _PUNCTUATION.sub(lambda sign: f"#{ord(sign[0])};", text)


def _quote_title(picture: Picture) -> str:
    """Return the title as a YAML string that is no markup for HTML around it either."""
    title = " · ".join(part for part in (picture.title, picture.subtitle, *picture.notes) if part)
    return json.dumps(title, ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")
