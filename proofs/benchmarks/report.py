"""Report: the measurements of the suites as tables, and the verdicts on the targets.

Everything on the page is computed from the `.jsonl` files beside it. A ratio is taken within a round, where
both sides ran minutes apart on the same machine; the page shows its median over the rounds.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .bench import SUBJECTS, TEMPORAL, Record, spread
from .suites.wire import SUBJECTS as WIRE_SUBJECTS

FLOOR, OURS, ELSEWHERE = "floor", "perdure", "dbos"
PEERS = tuple(subject for subject in TEMPORAL if subject not in (FLOOR, OURS))

PLOTS = {
    "steps-wall.svg": ("steps", "Wall time a step over the length of a run"),
    "steps-cpu.svg": ("steps", "Worker CPU a step over the length of a run"),
    "steps-history.svg": ("steps", "History of a whole run over its length"),
    "throughput.svg": ("throughput", "Steps a second a core over agents at once"),
    "streaming.svg": ("streaming", "Lag of a streamed word over watchers"),
}
"""Suite and title of each plot."""

Case = dict[str, Any]
Turn = tuple[int, str]
"""Round and case: only values of the same turn are compared."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Value of a suite: its title, its unit, and its meaning in a line."""

    key: str
    title: str
    unit: str = "ms"
    means: str = ""
    divide: float = 1.0
    ratio: bool = False
    """True when a table of ratios to the floor follows."""
    client: str = ""
    """Key of the same value as the client sees it; subjects that have it get a second row."""


KB, MB = 1024.0, 1024.0 * 1024.0
DASH = "\N{EN DASH}"
TITLES = {
    "steps": "Cost of a step over the length of a run",
    "throughput": "Many agents at once",
    "fanout": "Many calls and children at once",
    "recovery": "After a worker is killed",
    "idle": "Agents that wait",
    "streaming": "Streaming to watchers",
    "startup": "Start of a process",
    "wire": "Real adapters over HTTP",
}
_WORKER_CPU = "CPU time of the worker process, user and system"
MEASURES: dict[str, tuple[Measure, ...]] = {
    "steps": (
        Measure(
            key="wall_ms", title="Wall time a step", ratio=True, client="waited_ms",
            means="from the start of a run to its answer, divided by its steps; of dbos by its own store's "
            "clock, so that its client's polls are not counted against it",
        ),
        Measure(
            key="worker_cpu_ms", title="Worker CPU a step", ratio=True,
            means=f"{_WORKER_CPU}, divided by steps",
        ),
        Measure(
            key="server_cpu_ms", title="Server CPU a step",
            means="CPU time of the Temporal server with its database, divided by steps; dbos has no server",
        ),
        Measure(
            key="bytes", title="History a step", unit="KB", divide=KB,
            means="size of the run's event history over all its parts, divided by steps, the tool's own "
            "result included; of dbos: what its database holds of the run",
        ),
        Measure(
            key="worker_peak_mb", title="Peak memory of the worker", unit="MB",
            means="most resident memory while the run went on",
        ),
    ),
    "throughput": (
        Measure(
            key="steps_per_second", title="Steps a second", unit="",
            means="steps of all agents together, by wall time: more is better",
        ),
        Measure(
            key="steps_per_core_second", title="Steps a second a core", unit="", ratio=True,
            means="the same, divided by the cores of the machine: worker, server and driver share them",
        ),
        Measure(key="worker_cpu_ms", title="Worker CPU a step", means=f"{_WORKER_CPU}, divided by steps"),
        Measure(
            key="server_cpu_ms", title="Server CPU a step",
            means="CPU time of the Temporal server with its database, divided by steps",
        ),
        Measure(key="step_p50_ms", title="Step, median", means="half of the steps take less"),
        Measure(key="step_p99_ms", title="Step, 99th percentile", means="1 step in 100 takes more"),
    ),
    "fanout": (
        Measure(key="wall_ms", title="Wall time", ratio=True, means="from the start of the run to its end"),
        Measure(key="worker_cpu_ms", title="Worker CPU", means=f"{_WORKER_CPU}, for the run", ratio=True),
        Measure(key="events", title="Events", unit="", means="events in the run's history"),
        Measure(key="bytes", title="History", unit="KB", divide=KB, means="size of the run's event history"),
    ),
    "recovery": (
        Measure(
            key="gap_ms", title="Gap", ratio=True,
            means="from the kill of the worker to the begin of the next step, on another worker",
        ),
        Measure(key="replay_cpu_ms", title="Replay CPU", means="CPU time of the other worker until then"),
    ),
    "idle": (
        Measure(
            key="kb_each", title="Memory an agent", unit="KB",
            means="resident memory of the worker, beyond what it had at its start, by the agents that wait; "
            "without a cache: of another worker, after it has gone on with some of them",
        ),
        Measure(key="start_ms", title="Start of an agent", means="time to start all, by their number"),
        Measure(
            key="approval_p50_ms", title="Approval, median",
            means="from a person's approval to the start of the tool call",
        ),
        Measure(key="approval_p99_ms", title="Approval, 99th percentile", means="1 in 100 takes more"),
    ),
    "streaming": (
        Measure(
            key="lag_p50_ms", title="Lag, median",
            means="from the moment the model makes a word until a watcher has it",
        ),
        Measure(key="lag_p95_ms", title="Lag, 95th percentile", means="1 word in 20 takes longer"),
        Measure(
            key="worker_cpu_ms", title="Worker CPU a second", means=f"{_WORKER_CPU}, a second of streaming"
        ),
        Measure(
            key="server_cpu_ms", title="Server CPU a second",
            means="CPU time of the server a second of streaming",
        ),
        Measure(
            key="history_bytes", title="History", unit="KB", divide=KB,
            means="size of the run's event history",
        ),
        Measure(
            key="heard_share", title="Words heard", unit="%", divide=0.01,
            means="share of all words that arrived",
        ),
    ),
    "startup": (
        Measure(
            key="ms", title="Time",
            means="of imports and commands, beyond that of the interpreter with the Temporal SDK imported "
            "(a command that does not import it may take less); of a worker, until it polls",
        ),
        Measure(key="whole_ms", title="Time in all", means="interpreter and Temporal SDK included"),
    ),
    "wire": (
        Measure(
            key="worker_cpu_ms", title="Worker CPU a step",
            means=f"{_WORKER_CPU}, divided by steps: the request, its answer, the tool, and the durable step",
        ),
        Measure(
            key="wall_ms", title="Wall time a step",
            means="from the start of a run to its answer, divided by its steps; provider, worker and server "
            "share the machine",
        ),
        Measure(
            key="sent_bytes", title="Sent a step", unit="KB", divide=KB,
            means="bytes of the requests' bodies, divided by steps: each holds the whole conversation, and the "
            "provider refuses one that does not",
        ),
        Measure(
            key="worker_peak_mb", title="Peak memory of the worker", unit="MB",
            means="most resident memory while the run went on",
        ),
    ),
}  # fmt: skip
"""Measures on the page for each suite, in order."""

PHRASES = {
    "api": "{}",
    "steps": "{} steps",
    "concurrent": "{} at once",
    "calls": "{} calls",
    "children": "{} children",
    "step": "at step {}",
    "agents": "{} agents",
    "cache": "cache of {}",
    "watchers": "{} watchers",
    "words": "{} words",
    "what": "{}",
}


@dataclass
class Results:
    """Results of a suite."""

    head: dict[str, Any]
    records: list[Record] = field(default_factory=list[Record])

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self.head["suite"])

    def subjects(self, cases: Sequence[Case] | None = None) -> list[str]:
        """Return the subjects with a record in any of the cases, in the usual order."""
        found = {record.subject for record in self.records if cases is None or record.case in cases}
        return [s for s in SUBJECTS if s in found] + sorted(found - {*SUBJECTS})

    def cases(self) -> list[Case]:
        """Return all cases, each once, by size."""
        found: list[Case] = []
        for record in self.records:
            if record.case not in found:
                found.append(record.case)
        return sorted(found, key=_order)

    def where(self, subject: str, case: Case) -> list[Record]:
        """Return the subject's records whose case contains `case`."""
        return [r for r in self.records if r.subject == subject and case.items() <= r.case.items()]

    def values(self, subject: str, key: str, case: Case) -> dict[Turn, float]:
        """Return the subject's values in that case, by turn."""
        found = [r for r in self.where(subject, case) if math.isfinite(r.values.get(key, math.nan))]
        return {
            (record.round, json.dumps(record.case, sort_keys=True)): record.values[key] for record in found
        }

    def failures(self, subject: str, case: Case) -> list[Record]:
        """Return the subject's records in that case that have an error instead of values."""
        return [record for record in self.where(subject, case) if record.error]

    def ratios(self, over: str, under: str, key: str, case: Case) -> list[float]:
        """Return the values of `over` divided by those of `under`, each within a round."""
        above, below = self.values(over, key, case), self.values(under, key, case)
        return [above[turn] / below[turn] for turn in above if below.get(turn)]

    def beyond(self, subject: str, base: str, key: str, case: Case) -> list[float]:
        """Return the values of `subject` minus those of `base`, each within a round."""
        more, less = self.values(subject, key, case), self.values(base, key, case)
        return [more[turn] - less[turn] for turn in more if turn in less]


AS_WITH = re.compile(r"as with (\d+) steps: (.*)", re.DOTALL)
"""Error of a run that was skipped, because a run of so many steps has failed."""


def was_skipped(record: Record) -> bool:
    """Return whether a run was skipped although it is shorter than the failed one: no evidence."""
    before = AS_WITH.match(record.error)
    return before is not None and int(before[1]) > int(record.case.get("steps", 0))


def _record(line: dict[str, Any]) -> Record:
    return Record(**line) if "case" in line else Record(**line, case={})


def load(folder: Path) -> dict[str, Results]:
    """Read the results in a folder, by suite; the known suites come first."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines: list[Any] = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if lines:
            records = [_record(line) for line in lines[1:]]
            found[lines[0]["suite"]] = Results(lines[0], [r for r in records if not was_skipped(r)])
    known = [suite for suite in MEASURES if suite in found]
    return {suite: found[suite] for suite in [*known, *sorted(found.keys() - {*known})]}


def write(folder: Path) -> None:
    """Write the folder's README.md from the results in it."""
    (folder / "README.md").write_text(page(load(folder)))


def page(found: dict[str, Results]) -> str:
    """Return the text of the page."""
    notes = Notes()
    blocks = [*_head(found), "## Targets", _HOW_TARGETS, _targets(found), _again("--all")]
    for results in found.values():
        blocks += _suite(results, notes)
    blocks += notes.blocks()
    return "\n\n".join(blocks) + "\n"


# -- numbers and cells --------------------------------------------------------------------------------


def number(value: float) -> str:
    """Format a number for people, with three significant digits."""
    size = abs(value)
    if size < 0.0005:
        return "0"
    if size >= 99.95 or value == round(value):
        return f"{value:,.0f}"
    return (
        f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.0995 else f"{value:.3f}".rstrip("0")
    )


def spread_of(values: Sequence[float]) -> str:
    """Format the median, and the range of the values if it is visible."""
    least, middle, most = (number(value) for value in spread(values))
    to = " to " if least.startswith("-") else DASH
    return middle if least == most else f"{middle} ({least}{to}{most})"


def _in(unit: str) -> str:
    return unit and f" {unit}"


def _phrase(key: str, value: Any) -> str:
    if key == "size":
        return f"{number(value / KB)} KB" if value >= KB else f"{number(value)} bytes"
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    phrase = PHRASES.get(key, f"{key} {{}}")
    return (phrase.removesuffix("s") if value == 1 else phrase).format(shown)


def _describe(case: Case, keys: Iterable[str] | None = None) -> str:
    return ", ".join(_phrase(key, case[key]) for key in (case if keys is None else keys))


def _order(case: Case) -> list[tuple[str, float, str]]:
    return [
        (key, float(value) if isinstance(value, int | float) else 0.0, str(value))
        for key, value in case.items()
    ]


class Notes:
    """Footnotes with the reasons of failed runs; equal reasons share a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, record: Record) -> str:
        """Return the footnote's mark for a failed record."""
        case, error = record.case, record.error
        if before := AS_WITH.match(error):
            case, error = {**case, "steps": int(before[1])}, before[2]
        where = f"{record.suite}: {record.subject}, {_describe(case)}"
        text = f"{where}: `{shorten(error)}`"
        return f"[^{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def blocks(self) -> list[str]:
        """Return all footnotes, as blocks of the page."""
        return [f"[^{at}]: {text}" for text, at in self._numbers.items()]


def shorten(error: str, most: int = 200) -> str:
    """Return an error in a line of at most `most` characters."""
    line = " ".join(error.replace("`", "'").split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def cell(
    values: Sequence[float], failed: Sequence[Record], notes: Notes, show: Callable[[Sequence[float]], str]
) -> str:
    """Return the table's cell for a subject in a case."""
    if not values:
        return f"fails{notes.mark(failed[0])}" if failed else DASH
    if not failed:
        return show(values)
    return f"{show(values)}, {len(failed)} of {len(values) + len(failed)} fail{notes.mark(failed[0])}"


# -- tables of a suite --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Cases that are the columns of a table."""

    title: str
    cases: list[Case]
    keys: list[str]
    """Keys that differ from column to column."""
    command: str
    """Arguments of `python -m proofs.benchmarks run` that measure them again."""


def _groups(results: Results) -> list[Group]:
    apart: dict[str, list[Case]] = {}
    for case in results.cases():
        apart.setdefault(json.dumps([sorted(case), case.get("size"), case.get("api")]), []).append(case)
    return [_group(results.suite, cases, alone=len(apart) == 1) for cases in apart.values()]


def _group(suite: str, cases: list[Case], *, alone: bool) -> Group:
    first, command = cases[0], suite
    if "api" in first:
        return Group(_phrase("api", first["api"]), cases, ["steps"], f"{suite} --apis {first['api']}")
    keys = [key for key in first if len({case[key] for case in cases}) > 1] or list(first)[:1]
    fixed = [key for key in first if key not in keys]
    if "size" in fixed:
        title = f"Tool results of {_phrase('size', first['size'])}"
        command += "" if alone else f" --sizes {first['size']}"
    else:
        title = ("" if alone else keys[0].capitalize()) or _describe(first, fixed)
    return Group(title, cases, keys, command)


def _suite(results: Results, notes: Notes) -> list[str]:
    blocks = [f"## {_title(results.suite)}"]
    for group in _groups(results):
        blocks += [f"### {group.title[:1].upper()}{group.title[1:]}"] if group.title else []
        for measure in measures(results):
            blocks += View(results, group, notes).tables(measure)
    return blocks


def measures(results: Results) -> tuple[Measure, ...]:
    """Return the measures of a suite; of an unknown suite, all values."""
    keys = dict.fromkeys(key for record in results.records for key in record.values)
    return MEASURES.get(results.suite) or tuple(Measure(key=key, title=key, unit="") for key in keys)


@dataclass(frozen=True)
class View:
    """Tables of a group of cases."""

    results: Results
    group: Group
    notes: Notes

    def tables(self, measure: Measure) -> list[str]:
        """Return the table of a measure and that of its ratios, each with its command."""
        rows: list[list[str]] = []
        subjects = [s for s in self.results.subjects(self.group.cases) if self._has(s, measure.key)]
        for subject in subjects:
            rows.append([_name(subject), *self._cells(subject, measure, measure.key)])
            if measure.client and self._has(subject, measure.client):
                rows.append([f"{subject}, for its client", *self._cells(subject, measure, measure.client)])
        if not rows:
            return []
        unit = f", {measure.unit}" if measure.unit else ""
        blocks = self._table(f"{measure.title}{unit}", rows)
        if measure.ratio and FLOOR in subjects and len(subjects) > 1:
            rows = [[_name(s), *self._ratios(s, measure.key)] for s in subjects if s != FLOOR]
            blocks += self._table(f"{measure.title}, times {FLOOR}", rows)
        return blocks

    def _table(self, title: str, rows: list[list[str]]) -> list[str]:
        head = ["", *(_describe(case, self.group.keys) for case in self.group.cases)]
        return [f"**{title}**", table(head, rows), _again(self.group.command)]

    def _has(self, subject: str, key: str) -> bool:
        """Return whether the subject has a row: it has the value in some case, or finished nothing."""
        finished = [record for record in self.results.where(subject, {}) if record.values]
        return not finished or any(key in record.values for record in finished)

    def _cells(self, subject: str, measure: Measure, key: str) -> list[str]:
        cells: list[str] = []
        for case in self.group.cases:
            values = [value / measure.divide for value in self.results.values(subject, key, case).values()]
            failed = self.results.failures(subject, case)
            cells.append(cell(values, failed, self.notes, lambda each: number(median(each))))
        return cells

    def _ratios(self, subject: str, key: str) -> list[str]:
        cells: list[str] = []
        for case in self.group.cases:
            finished = self.results.values(subject, key, case)
            failed = [] if finished else self.results.failures(subject, case)
            cells.append(cell(self.results.ratios(subject, FLOOR, key, case), failed, self.notes, spread_of))
        return cells


def _name(subject: str) -> str:
    return f"**{subject}**" if subject == OURS else subject


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Format a Markdown table; `numbers` aligns all columns but the first to the right."""
    rule = [":--", *["--:" if numbers else ":--"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


# -- targets ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Measurement for a target: a value a round, or the reason why there is none."""

    values: Sequence[float] = ()
    note: str = ""
    met: bool | None = None
    """Verdict when there are no values; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Target, and how to compute its measurement."""

    suite: str
    what: str
    limit: float
    of: Callable[[Results], Found]
    least: bool = False
    """True when the limit is a minimum instead of a maximum."""
    unit: str = ""
    slack: float = 0.0
    """Tolerance to either side of the limit."""


def verdict(target: Target, found: Found) -> str:
    """Return whether the target is met, or by how much it is missed."""
    if not found.values:
        return {True: "met", False: "**missed**", None: "not measured"}[found.met]
    value = median(found.values)
    off = target.limit - value if target.least else value - target.limit
    off = abs(off) if target.slack else off
    return "met" if off <= target.slack else f"**missed** by {number(off)}{_in(target.unit)}"


def _targets(found: dict[str, Results]) -> str:
    rows: list[list[str]] = []
    for target in TARGETS:
        got = target.of(found[target.suite]) if target.suite in found else Found()
        shown = f"{spread_of(got.values)}{_in(target.unit)}" if got.values else DASH
        note = f", {got.note}" if got.values and got.note else got.note
        wanted = f"{'≥' if target.least else '≤'} {number(target.limit)}" if target.limit else "0"
        slack = f" (± {number(target.slack)})" if target.slack else ""
        measured = f"{shown}{note}" if got.values else got.note or DASH
        rows.append([target.what, f"{wanted}{slack}{_in(target.unit)}", measured, verdict(target, got)])
    return table(["Target", "Wanted", "Measured", "Verdict"], rows, numbers=False)


def _ours(results: Results, case: Case, values: Sequence[float], note: str = "") -> Found:
    """Return the values; without values because Perdure fails, return a missed target."""
    if not values and results.failures(OURS, case):
        return Found(note=f"{OURS} fails: {_describe(case)}", met=False)
    return Found(values, note if values else "")


def against_floor(key: str, **case: Any) -> Callable[[Results], Found]:
    """Compute Perdure's values divided by the floor's."""
    return lambda results: _ours(results, case, results.ratios(OURS, FLOOR, key, case))


def plain(key: str, **case: Any) -> Callable[[Results], Found]:
    """Compute Perdure's own values."""
    return lambda results: _ours(results, case, [*results.values(OURS, key, case).values()])


def worst(
    of: Callable[[Results, Case], Sequence[float]],
    choose: Callable[[Case], bool] = bool,
    *,
    by: Callable[[float], float] = float,
) -> Callable[[Results], Found]:
    """Compute the chosen case with the largest median; a failure is the worst case."""

    def compute(results: Results) -> Found:
        cases = [case for case in results.cases() if choose(case) and results.where(OURS, case)]
        each = [_ours(results, case, of(results, case), f"worst at {_describe(case)}") for case in cases]
        if failing := next((result for result in each if result.met is False), None):
            return failing
        return max(
            (result for result in each if result.values),
            key=lambda result: by(median(result.values)),
            default=Found(),
        )

    return compute


def against_best(
    key: str, peers: Sequence[str], *, more: bool = False, **case: Any
) -> Callable[[Results], Found]:
    """Compute how many times better Perdure is than the best peer; with `more`, larger is better."""

    def times(results: Results, peer: str) -> list[float]:
        over, under = (OURS, peer) if more else (peer, OURS)
        return results.ratios(over, under, key, case)

    def compute(results: Results) -> Found:
        if not results.values(OURS, key, case):
            return _ours(results, case, [])
        each = {peer: values for peer in peers if (values := times(results, peer))}
        if not each:
            none = any(results.failures(peer, case) for peer in peers)
            return Found(note="no peer finishes", met=True) if none else Found()
        best = min(each, key=lambda peer: median(each[peer]))
        return Found(each[best], best if len(peers) > 1 else "")

    return compute


def own_history(results: Results, case: Case) -> list[float]:
    """Return KB of history a step beyond the tool's own result."""
    return [(value - case["size"]) / KB for value in results.values(OURS, "bytes", case).values()]


def growth(key: str, shorter: Case, longer: Case) -> Callable[[Results], Found]:
    """Compute how many times Perdure's value in a longer run is that in a shorter one of the same round."""

    def compute(results: Results) -> Found:
        before = {turn: value for (turn, _), value in results.values(OURS, key, shorter).items()}
        after = {turn: value for (turn, _), value in results.values(OURS, key, longer).items()}
        values = [after[turn] / before[turn] for turn in after if before.get(turn)]
        return _ours(results, longer, values)

    return compute


def watched_history(results: Results) -> Found:
    """Return KB of history that 100 watchers add, compared with none or the fewest."""
    watched = {"watchers": 100}
    off: list[float] = []
    notes: set[str] = set()
    for record in results.where(OURS, watched):
        same = [
            base
            for base in results.where(OURS, {**record.case, "watchers": 0}) or _fewest(results, record.case)
            if base.round == record.round and "history_bytes" in base.values
        ]
        if same and "history_bytes" in record.values:
            off.append((record.values["history_bytes"] - same[0].values["history_bytes"]) / KB)
            notes.add(f"against {_describe(same[0].case, ['watchers'])}")
    return _ours(results, watched, off, ", ".join(sorted(notes)))


def _fewest(results: Results, case: Case) -> list[Record]:
    words = {key: value for key, value in case.items() if key != "watchers"}
    fewer = [record for record in results.where(OURS, words) if record.case["watchers"] < case["watchers"]]
    return sorted(fewer, key=lambda record: int(record.case["watchers"]))


def _cpu_by_floor(results: Results, case: Case) -> Sequence[float]:
    return results.ratios(OURS, FLOOR, "worker_cpu_ms", case)


def _idle_beyond(results: Results, case: Case) -> Sequence[float]:
    return results.beyond(OURS, FLOOR, "kb_each", case)


def _wire_targets() -> list[Target]:
    targets: list[Target] = []
    for api, subjects in WIRE_SUBJECTS.items():
        shorter, longer = {"api": api, "steps": 50}, {"api": api, "steps": 400}
        what = f"Worker CPU a step over HTTP, {api}, 400 steps divided by 50 steps"
        of = growth("worker_cpu_ms", shorter, longer)
        targets.append(Target(suite="wire", what=what, limit=1.3, of=of))
        peers = [subject for subject in subjects if subject != OURS]
        for steps in (50, 200, 400) if peers else ():
            what = f"Worker CPU a step over HTTP, the best peer divided by {OURS}, {api}, {steps} steps"
            of = against_best("worker_cpu_ms", peers, api=api, steps=steps)
            targets.append(Target(suite="wire", what=what, limit=1.0, least=True, of=of))
    return targets


def _small(case: Case) -> bool:
    return bool(case.get("size") == 2048)


def _against_peers() -> list[Target]:
    targets: list[Target] = []
    for whom, peers in (("the best peer on Temporal", PEERS), (ELSEWHERE, (ELSEWHERE,))):
        what = f"Steps a second a core, {OURS} divided by {whom}, 20 agents at once"
        of = against_best("steps_per_core_second", peers, more=True, concurrent=20)
        targets.append(Target(suite="throughput", what=what, limit=1.4, least=True, of=of))
        for steps, limit in ((50, 1.5), (200, 3.0)):
            what = f"Wall time a step, {whom} divided by {OURS}, {steps} steps, 2 KB"
            of = against_best("wall_ms", peers, steps=steps, size=2048)
            targets.append(Target(suite="steps", what=what, limit=limit, least=True, of=of))
    return targets


TARGETS = (
    Target(
        suite="steps", what="Wall time a step, times floor, 10 steps, 2 KB", limit=1.10,
        of=against_floor("wall_ms", steps=10, size=2048),
    ),
    Target(
        suite="steps", what="Wall time a step, times floor, 1,000 steps, 2 KB", limit=1.15,
        of=against_floor("wall_ms", steps=1000, size=2048),
    ),
    Target(
        suite="steps", what="Worker CPU a step, times floor, every length, 2 KB", limit=1.25,
        of=worst(_cpu_by_floor, _small),
    ),
    Target(
        suite="steps", what="History a step beyond the tool's own result, every length and size", limit=2.5,
        unit="KB", of=worst(own_history),
    ),
    Target(
        suite="throughput", what="Steps a second a core, times floor, 20 agents at once", limit=0.9,
        least=True, of=against_floor("steps_per_core_second", concurrent=20),
    ),
    *_against_peers(),
    Target(
        suite="recovery", what="Gap after a kill, times floor, at step 200", limit=1.3,
        of=against_floor("gap_ms", step=200),
    ),
    Target(
        suite="idle", what="Memory a waiting agent in the cache, beyond floor's", limit=30, unit="KB",
        of=worst(_idle_beyond, lambda case: bool(case.get("cache"))),
    ),
    Target(
        suite="idle", what="Memory a waiting agent without a cache, beyond floor's", limit=0, slack=1,
        unit="KB", of=worst(_idle_beyond, lambda case: case.get("cache") == 0, by=abs),
    ),
    Target(
        suite="streaming", what="Lag of a word, 95th percentile, 100 watchers", limit=250, unit="ms",
        of=plain("lag_p95_ms", watchers=100),
    ),
    Target(
        suite="streaming", what="History that 100 watchers add to a run", limit=0, slack=1, unit="KB",
        of=watched_history,
    ),
    Target(
        suite="startup", what="`import perdure`, beyond interpreter and Temporal SDK", limit=60, unit="ms",
        of=plain("ms", what="import perdure"),
    ),
    Target(
        suite="startup", what="`perdure --help`, beyond interpreter and Temporal SDK", limit=250, unit="ms",
        of=plain("ms", what="perdure --help"),
    ),
    *_wire_targets(),
)  # fmt: skip


# -- the head of the page -----------------------------------------------------------------------------

_INTRODUCTION = f"""\
# Benchmarks

<!-- Written by `python -m proofs.benchmarks report`: do not edit it. -->

Every subject does the same job. A fake model asks for one tool call a step, and a fake tool answers with
a text of a fixed size. Neither takes any time, so what is measured is the cost of the framework. After
each run the harness checks in its history that the work was really done. In the suite `wire` the model is
no fake: each subject calls a provider on this machine over HTTP, by the library that it uses in production.

**floor** is the job written by hand on the bare Temporal SDK: the physical limit of this server and
this machine. **dbos** does not run on Temporal. Every subject has its own virtual environment, worker
process and task queue.

Machines are shared, and so they are noisy: the same run may take half as long again an hour later. Do not
compare times of different days. The subjects take turns, so **a ratio within one round counts**. A ratio
here is the median over the rounds; from the smallest to the largest is in brackets. All other numbers
are medians over the rounds. 1 KB is 1,024 bytes. Where a run fails, a footnote
says why. {DASH} means: not measured."""

_HOW_TARGETS = """\
Computed from the results below. “The best peer” is the one with the best ratio of those that finished."""


def _title(suite: str) -> str:
    return TITLES.get(suite, suite)


def _again(command: str) -> str:
    return f"Again: `python -m proofs.benchmarks run {command}`"


def _head(found: dict[str, Results]) -> list[str]:
    lines = [
        *(str(results.head["command"]) for results in found.values()),
        "python -m proofs.benchmarks report",
    ]
    commands = "\n".join(dict.fromkeys(lines))
    warning = (
        "A run writes over the last results of its suite, also when it measures only a part of them: with "
        "`--out FOLDER` they go elsewhere."
    )
    blocks = [_INTRODUCTION, "## How to reproduce", f"```sh\n{commands}\n```", warning]
    blocks += [_machines(found), _versions(found), "## What the numbers are"]
    for suite, results in found.items():
        meanings = "\n".join(f"- {m.title}: {m.means}." for m in measures(results) if m.means)
        blocks += [f"**{_title(suite)}**", meanings] if meanings else []
    pictures = [f"![{what}]({name})" for name, (suite, what) in PLOTS.items() if suite in found]
    return [*blocks, *(["## Pictures", *pictures] if pictures else [])]


def _machines(found: dict[str, Results]) -> str:
    rows: list[list[str]] = []
    for suite, results in found.items():
        at, machine = results.head["at"], results.head["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
        rows.append([_title(suite), at.replace("T", " ").replace("+00:00", " UTC"), where])
    return table(["Suite", "Measured", "On"], rows, numbers=False)


def _versions(found: dict[str, Results]) -> str:
    seen: dict[str, dict[str, list[str]]] = {}
    for results in found.values():
        for subject, packages in results.head["versions"].items():
            for package, version in packages.items():
                versions = seen.setdefault(subject, {}).setdefault(package, [])
                versions += [version] if version not in versions else []
    order = [*(s for s in SUBJECTS if s in seen), *sorted(seen.keys() - {*SUBJECTS})]
    rows = [
        [_name(subject), ", ".join(f"{package} {' / '.join(v)}" for package, v in seen[subject].items())]
        for subject in order
    ]
    return table(["Subject", "Versions"], rows, numbers=False)
