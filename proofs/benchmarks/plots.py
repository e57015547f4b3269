"""Plots of the report, as SVG files; the only module here that needs matplotlib."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .report import FLOOR, KB, MB, OURS, PLOTS, Results, load

HISTORY_LIMIT_MB = 50
"""Size of a history at which Temporal ends a run; a run may continue in a new history."""

STYLES = {
    "floor": ("#767676", "s"),
    "perdure": ("#0072B2", "o"),
    "openai_agents": ("#C98B00", "^"),
    "pydantic_ai": ("#009E73", "v"),
    "strands": ("#CC79A7", "D"),
    "langgraph": ("#D55E00", "P"),
    "dbos": ("#000000", "*"),
}
"""Colour and marker of a subject: Okabe and Ito's palette, which colour-blind people can tell apart."""


@dataclass
class Line:
    """Line of a plot."""

    subject: str
    points: list[tuple[float, float]]
    label: str
    dies: str = ""
    """Case in which the subject fails, behind the last point; empty when it does not."""
    faint: bool = False


def draw(folder: Path) -> list[Path]:
    """Draw all plots whose suite has results in the folder; return the files, which are beside them."""
    import matplotlib as mpl

    found = load(folder)
    written: list[Path] = []
    style: Any = {"svg.hashsalt": "perdure", "svg.fonttype": "path", "font.size": 10, "path.simplify": False}
    with mpl.rc_context(style):
        for name, (suite, title) in PLOTS.items():
            if suite in found:
                figure = DRAWN[name](found[suite], title)
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None}, facecolor="white")
                written.append(folder / name)
    return written


def _steps(key: str, y: str) -> Callable[[Results, str], Any]:
    def draw_steps(results: Results, title: str) -> Any:
        size = _size(results)
        lines = lines_over(results, "steps", key, {"size": size})
        return _plot(lines, f"{title}, tool results of {size / KB:.0f} KB", "steps", f"{y} (x: dies)")

    return draw_steps


def _history(results: Results, title: str) -> Any:
    size = _size(results)
    lines = lines_over(results, "steps", "bytes", {"size": size})
    for line in lines:
        line.points = [(steps, each * steps / MB) for steps, each in line.points]
    return _plot(
        [line for line in lines if line.points],
        f"{title}, tool results of {size / KB:.0f} KB",
        "steps",
        "MB of history, all parts of the run (x: dies)",
        limit=(HISTORY_LIMIT_MB, "50 MB: Temporal's limit of one history"),
        log=True,
    )


def _throughput(results: Results, title: str) -> Any:
    lines = lines_over(results, "concurrent", "steps_per_core_second", {})
    return _plot(lines, title, "agents at once", "steps a second a core (more is better)")


def _streaming(results: Results, title: str) -> Any:
    late = lines_over(results, "watchers", "lag_p95_ms", {})
    usual = lines_over(results, "watchers", "lag_p50_ms", {})
    for line, share in [*((line, "p95") for line in late), *((line, "median") for line in usual)]:
        line.label, line.faint = f"{line.label}, {share}", share == "median"
    limit = (250.0, "target: 250 ms at p95")
    return _plot(
        [*late, *(line for line in usual if line.points)], title, "watchers", "ms of lag", limit=limit
    )


DRAWN: dict[str, Callable[[Results, str], Any]] = {
    "steps-wall.svg": _steps("wall_ms", "ms a step"),
    "steps-cpu.svg": _steps("worker_cpu_ms", "ms of worker CPU a step"),
    "steps-history.svg": _history,
    "throughput.svg": _throughput,
    "streaming.svg": _streaming,
}


def _size(results: Results) -> int:
    """Return 2 KB, or the smallest size that was measured."""
    sizes = sorted({int(case["size"]) for case in results.cases()})
    return 2048 if 2048 in sizes or not sizes else sizes[0]


def lines_over(results: Results, axis: str, key: str, fixed: dict[str, Any]) -> list[Line]:
    """Return a line for each subject: medians of a value over the axis."""
    marks = sorted({case[axis] for case in results.cases() if case.get(axis)})
    lines: list[Line] = []
    for subject in results.subjects():
        each = {at: [*results.values(subject, key, {**fixed, axis: at}).values()] for at in marks}
        points = [(float(at), median(values)) for at, values in each.items() if values]
        failed = [at for at in marks if not each[at] and results.failed(subject, {**fixed, axis: at})]
        if points or failed:
            dies = f"{failed[0]:,}" if failed else ""
            lines.append(Line(subject, points, f"{subject}, dies at {dies}" if dies else subject, dies))
    return lines


# -- drawing ------------------------------------------------------------------------------------------


def _plot(
    lines: list[Line],
    title: str,
    x: str,
    y: str,
    *,
    limit: tuple[float, str] | None = None,
    log: bool = False,
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2))
    axes: Any = figure.add_axes((0.085, 0.115, 0.68, 0.79))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    shown = [line for line in lines if line.points]
    _scales(axes, shown, limit[0] if limit else None, log=log)
    for line in shown:
        _line(axes, line)
    if limit:
        axes.axhline(limit[0], color="#333333", linewidth=1, linestyle=(0, (6, 3)), zorder=1)
        axes.annotate(
            limit[1], (0.01, limit[0]), xycoords=axes.get_yaxis_transform(), fontsize=9, color="#333333",
            xytext=(0, 3), textcoords="offset points",
        )  # fmt: skip
    _labels(figure, axes, shown)
    _never(axes, [line for line in lines if not line.points])
    return figure


def _scales(axes: Any, lines: list[Line], limit: float | None, *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    marks = sorted({x for line in lines for x, _ in line.points}) or [1.0]
    axes.set_xscale("log")
    axes.set_xlim(marks[0] / 1.1, max(marks[-1] * 1.06, marks[0] * 1.2))
    axes.set_xticks(marks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    heights = [y for line in lines for _, y in line.points if y > 0] or [1.0]
    heights += [limit] if limit else []
    if log or max(heights) > 8 * min(heights):
        axes.set_yscale("log")
        axes.set_ylim(min(heights) / 1.3, max(heights) * 1.5)
        axes.set_ylabel(f"{axes.get_ylabel()}, log scale")
        axes.yaxis.set_minor_formatter(FuncFormatter(_minor_tick))
    else:
        axes.set_ylim(0, max(heights) * 1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _tick(value: float, _: object = None) -> str:
    return f"{value:,.10g}"


def _minor_tick(value: float, _: object = None) -> str:
    """Label only the ticks 2 and 5 within a decade."""
    first = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
    return _tick(value) if first in (2, 5) else ""


def _line(axes: Any, line: Line) -> None:
    colour, marker = STYLES.get(line.subject, ("#333333", "."))
    xs, ys = zip(*line.points, strict=True)
    axes.plot(
        xs,
        ys,
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="--" if line.subject == FLOOR else ":" if line.faint else "-",
        linewidth=3 if line.subject == OURS and not line.faint else 1.6,
        zorder=4 if line.subject == OURS else 3,
    )
    if line.dies:
        axes.plot(xs[-1:], ys[-1:], color=colour, marker="x", markersize=13, markeredgewidth=2.5, zorder=5)


def _labels(figure: Any, axes: Any, lines: list[Line]) -> None:
    """Label each line at the right edge, as near to its end as possible; a hairline joins the two."""
    ends = [axes.transData.transform(line.points[-1]) for line in lines]
    order = sorted(range(len(lines)), key=lambda i: (ends[i][1], lines[i].subject))
    _, top = axes.transAxes.transform((1, 1))
    edge, bottom = axes.transAxes.transform((1, 0))
    gap = 10.5 * figure.dpi / 72 * 1.35
    heights = apart([float(ends[i][1]) for i in order], gap, float(bottom), float(top))
    back = axes.transData.inverted()
    for i, height in zip(order, heights, strict=True):
        line = lines[i]
        colour, _ = STYLES.get(line.subject, ("#333333", "."))
        to = back.transform((edge + 14, height))
        from_x, from_y = line.points[-1]
        axes.plot(
            [from_x, to[0]],
            [from_y, to[1]],
            color=colour,
            linewidth=0.8,
            linestyle=":",
            alpha=0.8,
            clip_on=False,
            zorder=2,
        )
        axes.annotate(
            line.label,
            to,
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if line.subject == OURS and not line.faint else "normal",
            annotation_clip=False,
        )


def apart(wanted: list[float], gap: float, bottom: float, top: float) -> list[float]:
    """Return heights near the wanted ones (sorted), at least `gap` from each other."""
    clusters: list[list[float]] = []
    for height in wanted:
        clusters.append([height])
        while len(clusters) > 1 and _low(clusters[-1], gap) - _high(clusters[-2], gap) < gap:
            last = clusters.pop()
            clusters[-1] += last
    placed = [_low(cluster, gap) + gap * i for cluster in clusters for i in range(len(cluster))]
    for i in range(len(placed)):
        placed[i] = max(placed[i], bottom + gap * i)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top - gap * (len(placed) - 1 - i))
    return placed


def _low(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _high(cluster: list[float], gap: float) -> float:
    return _low(cluster, gap) + gap * (len(cluster) - 1)


def _never(axes: Any, lines: list[Line]) -> None:
    """Name the subjects that finished nothing."""
    if lines:
        text = "\n".join(f"{line.subject} fails at {line.dies}" for line in lines)
        axes.text(0.01, 0.98, text, transform=axes.transAxes, va="top", fontsize=9, color="#333333")
