"""Pictures as SVG: one file that needs no other, readable on light and dark, states by sign and colour."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from rich.cells import cell_len

from .layers import Line, Point, Route, Size, layout
from .picture import Arrow, Box, BoxState, Picture

_MARGIN: Final = 24.0
_BIG: Final = 17.0
_NAME: Final = 14.0
_NAME_LINES: Final = 3
_SMALL: Final = 11.5
_TEXT: Final = 220.0
"""Most width of a text in a box."""
_LABEL: Final = 180.0
_TITLE: Final = 640.0
_INDENT: Final = 34.0
_PAD: Final = 12.0
_LEADING: Final = 17.0
_ENTRY: Final = 30.0
_LOOP: Final = 34.0

# State: fill, stroke, sign; for light, then for dark.
_COLOURS: Final[Mapping[BoxState, tuple[str, str, str, str]]] = {
    "pending": ("#f6f8fa", "#6e7781", "#21262d", "#8b949e"),
    "running": ("#ddf4ff", "#0969da", "#0c2d6b", "#58a6ff"),
    "waiting": ("#fff8c5", "#9a6700", "#3d2c00", "#e3b341"),
    "done": ("#dafbe1", "#1a7f37", "#0b3a1d", "#56d364"),
    "failed": ("#ffebe9", "#cf222e", "#5d1214", "#ff7b72"),
    "skipped": ("#f6f8fa", "#6e7781", "#21262d", "#8b949e"),
    "cancelled": ("#fbefff", "#8250df", "#341a5c", "#d2a8ff"),
}
# Drawn, not written: which signs a font has is anybody's guess. Within 12 by 12 around the middle.
_SIGNS: Final[Mapping[BoxState, str]] = {
    "pending": "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0",
    "running": "M-4 -5.5L5 0L-4 5.5Z",
    "waiting": "M-3 -3A3 3 0 1 1 1.4 -.4Q0 .4 0 2.2M0 5.2V5.4",
    "done": "M-5 .5L-1.5 4L5 -4",
    "failed": "M-4 -4L4 4M4 -4L-4 4",
    "skipped": "M-5 -4.5L-1 0L-5 4.5M1 -4.5L5 0L1 4.5",
    "cancelled": "M-4.5 -4.5H4.5V4.5H-4.5Z",
}
_SHAPE: Final = """
.perdure{font-family:"Helvetica Neue",Arial,"Liberation Sans",system-ui,sans-serif}
.perdure .box{stroke-width:1.5}
.perdure .running .box,.perdure .waiting .box,.perdure .failed .box{stroke-width:2.5}
.perdure .skipped .box,.perdure .cancelled .box{stroke-dasharray:5 3}
.perdure .inner{fill:none;stroke-width:1}
.perdure .sign{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.perdure .name{font-size:14px;font-weight:600}
.perdure .small{font-size:11.5px}
.perdure .title{font-size:17px;font-weight:600}
.perdure .edge{fill:none;stroke-width:1.5}
"""


_EDGE: Final = ("#57606a", "#8b949e")
_BACK: Final = ("#bc4c00", "#f0883e")
_INK: Final = ("#1f2328", "#e6edf3")
_FAINT: Final = ("#57606a", "#b1bac4")
_GROUND: Final = ("#ffffff", "#0d1117")


def svg(of: Picture) -> str:
    """The picture as an SVG document."""
    loops = _loops(of.arrows)
    cards = [_Card(box, loops.get(number)) for number, box in enumerate(of.boxes)]
    lines = [_line(arrow) for arrow in of.arrows]
    plan = layout([card.size for card in cards], lines, of.entries)
    head = _Head(of)
    width = max(plan.width, head.width) + 2 * _MARGIN
    left, top = (width - plan.width) / 2, head.height + _MARGIN
    routed = [
        (arrow, route) for arrow, route in zip(of.arrows, plan.routes, strict=True) if route is not None
    ]
    parts = [
        _opening(width, top + plan.height + _MARGIN, head.lines[0]),
        head.drawn(),
        f'<g transform="translate({_n(left)} {_n(top)})">',
        *(_edge(route) for _, route in routed),
        *(card.drawn(place) for card, place in zip(cards, plan.places, strict=True)),
        *(_label(_cut(arrow.label, _LABEL, _SMALL), route.label) for arrow, route in routed if arrow.label),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _loops(arrows: Sequence[Arrow]) -> dict[int, str]:
    """Labels of the edges from a box to itself, by box; several become one."""
    found: dict[int, list[str]] = {}
    for arrow in arrows:
        if arrow.source == arrow.target:
            found.setdefault(arrow.source, []).append(arrow.label)
    return {box: _cut(", ".join(filter(None, labels)), _LABEL, _SMALL) for box, labels in found.items()}


def _line(arrow: Arrow) -> Line:
    label = _width(_cut(arrow.label, _LABEL, _SMALL), _SMALL) + 12 if arrow.label else 0
    return Line(source=arrow.source, target=arrow.target, label=label)


# -- the document


def _opening(width: float, height: float, title: str) -> str:
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="perdure" role="img" {size}>\n'
        f"<title>{escape(title)}</title>\n<style>{_SHAPE}{_style(0)}"
        f"@media (prefers-color-scheme:dark){{\n{_style(1)}}}\n</style>\n"
        f"<defs>{_head_of('to', 'edge-end')}{_head_of('back-to', 'back-end')}</defs>\n"
        f'<rect class="ground" width="{_n(width)}" height="{_n(height)}"/>'
    )


def _head_of(name: str, style: str) -> str:
    return (
        f'<marker id="perdure-{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9"'
        f' markerUnits="userSpaceOnUse" orient="auto"><path class="{style}" d="M0 0L10 5L0 10Z"/></marker>'
    )


def _style(theme: int) -> str:
    """Colours: 0 is light, 1 is dark."""
    rules = [
        f".perdure .ground,.perdure .under{{fill:{_GROUND[theme]}}}",
        f".perdure text{{fill:{_INK[theme]}}}",
        f".perdure .faint{{fill:{_FAINT[theme]}}}",
        f".perdure .edge{{stroke:{_EDGE[theme]}}}",
        f".perdure .back{{stroke:{_BACK[theme]}}}",
        f".perdure .edge-end{{fill:{_EDGE[theme]}}}",
        f".perdure .back-end{{fill:{_BACK[theme]}}}",
    ]
    for state, colours in _COLOURS.items():
        fill, stroke = colours[2 * theme : 2 * theme + 2]
        rules.append(f".perdure .{state} .box{{fill:{fill};stroke:{stroke}}}")
        rules.append(f".perdure .{state} .inner,.perdure .{state} .sign{{stroke:{stroke}}}")
    return "\n".join(rules) + "\n"


class _Head:
    """Title, and what is said of the whole."""

    def __init__(self, of: Picture) -> None:
        below = [_cut(line, _TITLE, _SMALL) for line in (of.subtitle, *of.notes) if line]
        self.lines = (_cut(of.title, _TITLE, _BIG), *below)
        self.width = max(_width(line, _SMALL if at else _BIG) for at, line in enumerate(self.lines))
        self.height = _MARGIN + _BIG + _LEADING * len(below)

    def drawn(self) -> str:
        styles = ("title", *("small faint" for _ in self.lines[1:]))
        places = [_MARGIN + _BIG - 4 + _LEADING * at for at in range(len(self.lines))]
        rows = zip(styles, places, self.lines, strict=True)
        return "\n".join(_text(_MARGIN, y, line, style) for style, y, line in rows)


# -- boxes


class _Card:
    """A box with its texts, measured."""

    def __init__(self, box: Box, loop: str | None) -> None:
        self._box = box
        self._loop = loop
        """Label of the edge from the box to itself; None when there is none."""
        self._name = _wrapped(box.name, _TEXT, _NAME)
        self._lines = [_cut(line, _TEXT, _SMALL) for line in box.lines]
        widths = [_width(line, _NAME) for line in self._name] + [_width(one, _SMALL) for one in self._lines]
        beside = 0 if loop is None else _LOOP + _width(loop, _SMALL)
        self.size = Size(
            width=max(_INDENT + max(widths) + _PAD, 110),
            height=2 * _PAD + _LEADING * len((*self._name, *self._lines)) - 2,
            left=_ENTRY if box.entry else 0,
            right=beside,
        )

    def drawn(self, middle: Point) -> str:
        x, y = middle[0] - self.size.width / 2, middle[1] - self.size.height / 2
        parts = [
            f'<g class="{self._box.state}" transform="translate({_n(x)} {_n(y)})">',
            f"<title>{escape(' · '.join((self._box.name, self._box.state, *self._box.lines)))}</title>",
            *self._outline(),
            f'<path class="sign" transform="translate(18 {_n(_PAD + 7)})" d="{_SIGNS[self._box.state]}"/>',
            *self._texts(),
            *self._beside(),
        ]
        return "\n".join(parts) + "</g>"

    def _outline(self) -> list[str]:
        """Round corners for agents, square ones for functions, a frame within for swarms and graphs."""
        kind = self._box.kind
        width, height = self.size.width, self.size.height
        corner = 2 if kind == "function" else 10
        box = f'<rect class="box" width="{_n(width)}" height="{_n(height)}" rx="{corner}"/>'
        if kind not in ("swarm", "graph"):
            return [box]
        inner = f'x="4" y="4" width="{_n(width - 8)}" height="{_n(height - 8)}" rx="7"'
        return [box, f'<rect class="inner" {inner}/>']

    def _texts(self) -> list[str]:
        rows = [*((line, "name") for line in self._name), *((line, "small faint") for line in self._lines)]
        return [
            _text(_INDENT, _PAD + 12 + _LEADING * at, line, style) for at, (line, style) in enumerate(rows)
        ]

    def _beside(self) -> list[str]:
        width, middle = self.size.width, self.size.height / 2
        drawn: list[str] = []
        if self._box.entry:
            drawn.append(f'<circle class="edge-end" cx="{_n(6 - _ENTRY)}" cy="{_n(middle)}" r="4"/>')
            drawn.append(_path(f"M{_n(6 - _ENTRY)} {_n(middle)}H-1"))
        if self._loop is not None:
            bow = f"{_n(width + 32)} {_n(middle - 16)} {_n(width + 32)} {_n(middle + 16)}"
            drawn.append(
                _path(f"M{_n(width)} {_n(middle - 9)}C{bow} {_n(width + 1)} {_n(middle + 9)}", back=True)
            )
            drawn.append(_text(width + 28, middle + 4, self._loop, "small"))
        return drawn


# -- edges


def _edge(route: Route) -> str:
    """Straight where it stands upright, in a curve from one upright to the next."""
    (x, y), *rest = route.points
    drawn = [f"M{_n(x)} {_n(y)}"]
    for to_x, to_y in rest:
        half = (y + to_y) / 2
        curve = f"C{_n(x)} {_n(half)} {_n(to_x)} {_n(half)} {_n(to_x)} {_n(to_y)}"
        drawn.append(f"L{_n(to_x)} {_n(to_y)}" if abs(to_x - x) < 0.5 else curve)
        x, y = to_x, to_y
    return _path("".join(drawn), back=route.back)


def _path(d: str, *, back: bool = False) -> str:
    style, head = ("edge back", "back-to") if back else ("edge", "to")
    return f'<path class="{style}" marker-end="url(#perdure-{head})" d="{d}"/>'


def _label(text: str, middle: Point) -> str:
    width = _width(text, _SMALL)
    x, y = middle[0] - width / 2 - 3, middle[1] - 8
    under = f'<rect class="under" x="{_n(x)}" y="{_n(y)}" width="{_n(width + 6)}" height="16" rx="4"/>'
    return under + _text(middle[0], middle[1] + 4, text, "small", anchor=' text-anchor="middle"')


# -- text


def _text(x: float, y: float, text: str, style: str, anchor: str = "") -> str:
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}"{anchor}>{escape(text)}</text>'


def _n(number: float) -> str:
    """To a tenth, and as short as that can be written."""
    return f"{number:.1f}".removesuffix(".0").replace("-0", "-0" if abs(number) >= 0.05 else "0")


def _width(text: str, size: float) -> float:
    """How wide a text is at most, in any of the usual fonts; there is no way to ask."""
    return size * sum(map(_em, text))


def _em(sign: str) -> float:
    if not sign.isascii():
        return max(cell_len(sign) * 0.62, 0.8)
    if sign in "iljtfrI.,:;'|!()[]- ":
        return 0.42
    return 1.0 if sign in "mwMW@%" else 0.78 if sign.isupper() else 0.66


def _cut(text: str, most: float, size: float) -> str:
    """The text, its end left out when it is wider than that."""
    if _width(text, size) <= most:
        return text
    while text and _width(text, size) > most - size:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, most: float, size: float) -> list[str]:
    """The text in a few lines, broken behind the last word that fits, or wherever it must be."""
    lines: list[str] = []
    while _width(text, size) > most and len(lines) < _NAME_LINES - 1:
        fits = next(at for at in range(len(text), 0, -1) if _width(text[:at], size) <= most)
        cut = max(text.rfind(sign, 0, fits) + 1 for sign in " _-./")
        cut = cut if cut > fits / 3 else fits
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*lines, _cut(text, most, size)]
