"""Picture of a soak, as an SVG file; the only module here that needs matplotlib."""

from pathlib import Path
from typing import Any

from .judge import BOUNDS, points_of
from .report import PICTURE, Soak

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#767676", "#CC79A7")
"""Okabe and Ito's palette, which colour-blind people can tell apart."""


def draw(soak: Soak, folder: Path) -> None:
    """Draw everything that is sampled over time, beside the samples."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "perdure", "svg.fonttype": "path", "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 9), layout="constrained")
        panels: Any = figure.subplots(3, 2)
        for axes, bound in zip(panels.flat, BOUNDS, strict=True):
            _panel(axes, soak, bound.key, bound.title)
        panels.flat[0].legend(frameon=False, fontsize=8)
        figure.savefig(folder / PICTURE, metadata={"Date": None, "Creator": None}, facecolor="white")


def _panel(axes: Any, soak: Soak, key: str, title: str) -> None:
    for process, colour in zip([*soak.judged_processes, "server"], _COLOURS, strict=False):
        points = points_of(soak.samples, process, key)
        if points:
            axes.plot([hour * 60 for hour, _ in points], [v for _, v in points], color=colour, label=process)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("minutes")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
