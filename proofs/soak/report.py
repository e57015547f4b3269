"""Page of a soak, computed from its samples alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .judge import BOUNDS, Finding, Sample, findings, left_over, points_of

SAMPLES = "samples.jsonl"
_FEWEST = 60
"""Fewest samples under load: ten minutes."""
_MOST_SKIPPED = 0.01
_UNEVEN = (
    "the load was not steady, so growth proves nothing: {skipped} operations were skipped and {done} done, "
    "because the machine was too slow for the rate"
)
PICTURE = "soak.svg"


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Stored soak: the head, the samples, and the tally of operations."""

    head: dict[str, Any]
    samples: list[Sample]
    tally: dict[str, Any]

    @property
    def workers(self) -> list[str]:
        """Names of the worker processes."""
        names: dict[str, Any] = self.samples[0]["processes"] if self.samples else {}
        return [name for name in names if name.startswith("worker")]

    @property
    def judged_processes(self) -> list[str]:
        """Names of the judged processes: the workers, and the driver as an example of a client."""
        return [*self.workers, "driver"]

    @property
    def findings(self) -> list[Finding]:
        """Findings on all judged processes."""
        return findings(self.samples, self.judged_processes)

    @property
    def problems(self) -> list[str]:
        """Reasons why the soak failed; empty when it did not."""
        grown = [
            f"{finding.process}: {finding.bound.title}: {finding.an_hour:+,.1f} an hour, "
            f"more than {finding.bound.most:,}"
            for finding in self.findings
            if not finding.is_fine
        ]
        errors = self.tally.get("errors", [])
        failed = [f"{len(errors)} operations failed, the first: {errors[0][:200]}"] if errors else []
        return [*self._doubts, *grown, *failed]

    @property
    def _doubts(self) -> list[str]:
        loaded = sum(sample["loaded"] for sample in self.samples)
        short = [] if loaded >= _FEWEST else [f"too short to be judged: {loaded} samples of {_FEWEST}"]
        skipped, done = self.tally.get("skipped", 0), sum(self.tally.get("done", {}).values())
        uneven = skipped > done * _MOST_SKIPPED
        return [*short, *([_UNEVEN.format(skipped=skipped, done=done)] if uneven else [])]


def read(folder: Path) -> Soak:
    """Read the soak whose samples are in the folder."""
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
    """Return the text of the page."""
    blocks = [
        "# Soak",
        "<!-- Written by `python -m proofs.soak report`: do not edit it. -->",
        *_head(soak),
        "## Verdict",
        "\n".join(f"- **{problem}**" for problem in soak.problems) or "Nothing grows.",
        "## Resources of the workers and the client",
        _HOW.format(**soak.head),
        _table(_COLUMNS, [_row(finding) for finding in soak.findings]),
        _left_over(soak),
        "Reasons for the bounds:",
        "\n".join(f"- {bound.title}, {bound.most:,} an hour: {bound.because}." for bound in BOUNDS),
        f"![Resources of the processes over time]({PICTURE})",
        "## Growth that is expected",
        "The server keeps histories, and nothing deletes blobs. Both are reported, not judged.",
        _table(["what", "at the beginning", "at half time", "at the end"], list(_natural(soak))),
        "## Operations",
        *_done(soak),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


_COLUMNS = ["process", "what", "at half time", "at the end", "an hour", "allowed", ""]
_HOW = """\
The slope is Theil and Sen's: the median of the slopes between all pairs of samples. It is taken over the
second half of the time, because caches and pools fill up in the first. For that reason the caches are small:
the workers' cache of transcripts has {transcript_cache_mb} MB, their cache of runs {cached} places, and each
cache of blobs, also the driver's, {blob_cache_mb} MB."""
_WHAT = """\
{minutes:.0f} minutes of a steady load: an operation every {apart:.1f} s (a run, a swarm, a family of agents
and so on), and {sessions} sessions beside them. Two worker processes and the embedded server, with its
database on disk, carry the load. A sample is taken every {every:.0f} s. Histories continue as new after
{continue_at} events, so that it happens often."""


def _left_over(soak: Soak) -> str:
    counts = ", ".join(f"{count:.0f}" for count in left_over(soak.samples, soak.workers).values())
    why = "copies of runs that another worker continued; they stay until their place is needed"
    return f"Cached workflows after all runs had ended: {counts} ({why})." if counts else ""


def _head(soak: Soak) -> list[str]:
    head = soak.head
    machine = head["machine"]
    loaded = [sample["seconds"] for sample in soak.samples if sample["loaded"]]
    computed = {"minutes": max(loaded, default=0) / 60, "apart": 1 / head["rate"]}
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    at = head["at"].replace("T", " ").replace("+00:00", " UTC")
    return [
        _WHAT.format(**head, **computed),
        f"```sh\n{head['command']}\n```",
        f"{at}, on {where}. {head['note']}".strip(),
    ]


def _done(soak: Soak) -> list[str]:
    done, errors = soak.tally.get("done", {}), soak.tally.get("errors", [])
    skipped = f"Skipped because the machine was too slow for the rate: {soak.tally.get('skipped', 0)}."
    return [
        _table(["operation", "times"], [[what, f"{times:,}"] for what, times in done.items()]),
        f"{skipped} Failed: {len(errors)}.",
        "\n".join(f"- `{error[:200]}`" for error in errors[:10]),
    ]


def _row(finding: Finding) -> list[str]:
    digits = 1 if finding.bound.key == "rss_mb" else 0
    values = [f"{value:,.{digits}f}" for value in (finding.begin, finding.end)]
    return [
        finding.process,
        finding.bound.title,
        *values,
        f"{finding.an_hour:+,.1f}",
        f"{finding.bound.most:,}",
        "ok" if finding.is_fine else "**grows**",
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
