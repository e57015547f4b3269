"""The page of a soak, computed from its samples alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .judge import BOUNDS, Finding, Sample, findings, left_over, points_of

SAMPLES = "samples.jsonl"
_FEWEST = 60
"""Samples under load: ten minutes."""
_MOST_SKIPPED = 0.01
_UNEVEN = (
    "the load was not steady, so growth proves nothing: {skipped} deeds were skipped beside {done} done, "
    "because the machine was too slow for the rate"
)
PICTURE = "soak.svg"


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What was written down: the head, the samples, and what was done."""

    head: dict[str, Any]
    samples: list[Sample]
    tally: dict[str, Any]

    @property
    def workers(self) -> list[str]:
        """Those that are judged, with the driver, which is a client as people have it."""
        names: dict[str, Any] = self.samples[0]["processes"] if self.samples else {}
        return [name for name in names if name.startswith("worker")]

    @property
    def judged(self) -> list[str]:
        """All processes that are ours."""
        return [*self.workers, "driver"]

    @property
    def findings(self) -> list[Finding]:
        """Of all that is judged."""
        return findings(self.samples, self.judged)

    @property
    def problems(self) -> list[str]:
        """Why the soak failed; nothing when it did not."""
        grown = [
            f"{one.process}: {one.bound.title}: {one.an_hour:+,.1f} an hour, more than {one.bound.most:,}"
            for one in self.findings
            if not one.is_fine
        ]
        errors = self.tally.get("errors", [])
        failed = (
            [f"{len(errors)} deeds did not go as they should, the first: {errors[0][:200]}"] if errors else []
        )
        return [*self._doubts, *grown, *failed]

    @property
    def _doubts(self) -> list[str]:
        loaded = sum(sample["loaded"] for sample in self.samples)
        short = [] if loaded >= _FEWEST else [f"too short to be judged: {loaded} samples of {_FEWEST}"]
        skipped, done = self.tally.get("skipped", 0), sum(self.tally.get("done", {}).values())
        uneven = skipped > done * _MOST_SKIPPED
        return [*short, *([_UNEVEN.format(skipped=skipped, done=done)] if uneven else [])]


def read(folder: Path) -> Soak:
    """The soak whose samples are in the folder."""
    head, *rest = (json.loads(line) for line in (folder / SAMPLES).read_text().splitlines())
    samples = [line for line in rest if "processes" in line]
    nothing: dict[str, Any] = {}
    tally = next((line for line in rest if "done" in line), nothing)
    return Soak(head=head, samples=samples, tally=tally)


def write(folder: Path) -> Soak:
    """Write the page beside the samples."""
    soak = read(folder)
    (folder / "README.md").write_text(page(soak))
    return soak


def page(soak: Soak) -> str:
    """The whole page."""
    blocks = [
        "# Soak",
        "<!-- Written by `python -m proofs.soak report`: do not edit it. -->",
        *_head(soak),
        "## Verdict",
        "\n".join(f"- **{one}**" for one in soak.problems) or "Nothing grows.",
        "## What the workers and the client hold",
        _HOW.format(**soak.head),
        _table(_COLUMNS, [_row(one) for one in soak.findings]),
        _left_over(soak),
        "Why no more is allowed:",
        "\n".join(f"- {bound.title}, {bound.most:,} an hour: {bound.because}." for bound in BOUNDS),
        f"![What the processes hold, over time]({PICTURE})",
        "## What grows by its nature",
        "The server keeps histories, and nothing deletes blobs: both are reported and not judged.",
        _table(["what", "at the begin", "at half time", "at the end"], list(_natural(soak))),
        "## What was done",
        *_done(soak),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


_COLUMNS = ["process", "what", "at half time", "at the end", "an hour", "allowed", ""]
_HOW = """\
The slope is Theil and Sen's, the median of the slopes between all pairs of samples, over the second half
of the time: in the first, caches and pools fill up. The workers' cache of transcripts is set to
{transcript_cache_mb} MB and that of runs to {cached}, so that they are full by then; those of blobs, of the
driver too, hold {blob_cache_mb} MB each."""
_WHAT = """\
{minutes:.0f} minutes of a steady load: a deed every {apart:.1f} s (a run, a swarm, a family of agents and so
on), and {talkers} sessions beside them, on two worker processes and the embedded server with its database on
disk. A sample every {every:.0f} s. Histories continue as new after {continue_at} events, so that it happens
often."""


def _left_over(soak: Soak) -> str:
    counts = ", ".join(f"{count:.0f}" for count in left_over(soak.samples, soak.workers).values())
    why = "copies of runs that another worker went on with, which stay until their place is needed"
    return f"Cached once every run had ended: {counts} ({why})." if counts else ""


def _head(soak: Soak) -> list[str]:
    head = soak.head
    machine = head["machine"]
    loaded = [sample["seconds"] for sample in soak.samples if sample["loaded"]]
    given = {"minutes": max(loaded, default=0) / 60, "apart": 1 / head["rate"]}
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    at = head["at"].replace("T", " ").replace("+00:00", " UTC")
    return [
        _WHAT.format(**head, **given),
        f"```sh\n{head['command']}\n```",
        f"{at}, on {where}. {head['note']}".strip(),
    ]


def _done(soak: Soak) -> list[str]:
    done, errors = soak.tally.get("done", {}), soak.tally.get("errors", [])
    skipped = f"Skipped because the machine was too slow for the rate: {soak.tally.get('skipped', 0)}."
    return [
        _table(["deed", "times"], [[what, f"{times:,}"] for what, times in done.items()]),
        f"{skipped} Not as it should be: {len(errors)}.",
        "\n".join(f"- `{error[:200]}`" for error in errors[:10]),
    ]


def _row(one: Finding) -> list[str]:
    digits = 1 if one.bound.key == "rss_mb" else 0
    values = [f"{value:,.{digits}f}" for value in (one.begin, one.end)]
    return [
        one.process,
        one.bound.title,
        *values,
        f"{one.an_hour:+,.1f}",
        f"{one.bound.most:,}",
        "ok" if one.is_fine else "**grows**",
    ]


def _natural(soak: Soak) -> Sequence[list[str]]:
    wanted = [
        ("server: resident memory, MB", "server", "rss_mb"),
        ("server: file handles", "server", "handles"),
        ("server: database, MB", "database", "mb"),
        ("blobs, MB", "blobs", "mb"),
        ("blobs, files", "blobs", "files"),
    ]
    rows: list[list[str]] = []
    for title, process, key in wanted:
        points = points_of(soak.samples, process, key)
        if points:
            at = (points[0], points[len(points) // 2], points[-1])
            rows.append([title, *(f"{value:,.0f}" for _, value in at)])
    return rows


def _table(head: list[str], rows: Sequence[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
