"""Report of the proof by chaos: docs/chaos/README.md from the stored results."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .results import Head, load
from .schedule import MEANING
from .verdict import Record

Result = tuple[Head, Record]

_TITLES = {
    "perdure": "Perdure",
    "strands": "Strands Agents, with Temporal's plugin",
    "pydantic_ai": "Pydantic AI, with its support for Temporal",
}
_HEAD = """\
# Proof by chaos

<!-- Written by `python -m proofs.chaos report`: do not edit it. -->

The tasks come from the multi-turn base set of BFCL (`bfcl-eval`): 200 conversations, 734 turns and 1,142
gold calls over 8 stateful APIs. A run fetches them; this repository stores nothing of them. A scripted model
plays the gold calls over HTTP through the whole stack: a fake provider that streams, the real OpenAI adapter,
three worker processes, Temporal, and tools that reach the APIs in a process of their own. Sixteen tasks are
played at a time. Meanwhile parts are killed and cut off. At the end **the set's own checkers** judge the
state of the APIs' objects and all results against a replay of the gold calls.

The faults, and the calls at which they happen, follow from a seed. A test pins them, and
`python -m proofs.chaos schedule KIND --seed N` prints them. The race of the day decides which task makes
that call. A repeated seed is compared with its previous run.

A run of fewer than 200 tasks takes them from all parts of the set.

| column | meaning |
| --- | --- |
| date, version | day of the run, and the version of Perdure then |
| faults | number of faults that happened |
| finished | tasks whose caller got the right last words of each turn, and whose run then ended |
| right | tasks whose final state and results are right by the set's own checkers |
| equal | tasks whose final state equals that of the run without faults, private attributes included |
| effects | calls that the tools carried out; there are as many gold calls |
| flagged repeats | calls repeated under the key of an earlier effect: answered from the tools' journal |
| unflagged duplicates | effects beyond the gold calls: the tools could not tell. **Must be 0** |
| models | billed model calls beyond those that the tasks need: paid for twice |
| stall | longest time between two steps of a task, in seconds |
| resumed | parked runs without a retry timer that the conductor resumed, as a person on duty would |
| lost | tasks that ended wrongly, or not at all. **Must be 0** |
| runs | number of runs in a row with the same outcome: faults, tasks that ended right, effects |
"""
_TAIL = """\
## How to reproduce

```sh
make chaos          # all tasks under each kind of fault
make chaos-quick    # 20 tasks, killed workers, then several kinds together: less than three minutes
python -m proofs.chaos run workers --seed 7 --tasks 60
python -m proofs.chaos run --subjects strands pydantic_ai
python -m proofs.chaos report
```

`results.jsonl` has the figures, the names of the faults that happened, and the versions.

## Limits of the faults

- Stalls grow with the load of the machine, and so do the model calls that a slow worker loses to its
  heartbeat timeout. A killed worker is back in seconds on a quiet machine, in half a minute on a crowded one.
  Read these figures as bounds, and do not compare them between subjects.
- Versions above a table are those of the conductor's environment. Those of the peers stand in their
  requirements.
- Temporal notices a worker's death by missing heartbeats: after 5 s for a model call, after 10 s for a tool.
- A tool's call that `kill -9` loses before its effect never reached the tools. Its retry did.
- The server is killed with its database on a local disk, which survives. A lost disk is not tried.
- `silent` drops all traffic for 15 s. A connection that lost a piece stays silent for good, so the worker
  has to notice: Temporal's SDK does so by its keep-alive, after some 45 s. The workers have no other way
  to Temporal.
- A full disk is a limit of the operating system on each worker (`RLIMIT_FSIZE` of 0): each write to a file
  fails, with another error number than a full disk's. In these runs results of tools go to the blob store.
  The model's answers are too small for it, so none of these runs parks.
- A slow disk is a delay in each `fsync` of the workers. Reads are not slow, nor is the server's disk.
- libfaketime fakes the clock in the workers, for Python and for the SDK's native code. Monotonic clocks go
  on, as they do on a real machine. The server's clock does not jump.
- The provider is never killed: to a worker that is the same as `cut`.

## Settings other than the defaults

Perdure runs with its defaults, with two exceptions. Where the tools themselves fail (`tools`, `duplicates`,
`together`), a tool has 60 attempts, as an idempotent tool may, and a timeout of 5 s. The defaults are 3 attempts,
which are over before a killed process is back, and one minute. Where model calls stall (`provider`,
`provider_line`, `together`), their timeout is 10 s (default ten minutes): a stalled call lasts until its timeout.
Peers: a tool's timeout is 5 s and a model call's 10 s in each kind, a heartbeat timeout of 5 s for Strands' model
calls, and an idempotency key made of the run's and the activity's id, as Temporal's docs advise, because neither
peer has a key of its own. Their retries are their defaults.
"""


def write(folder: Path) -> None:
    """Write README.md beside the results."""
    (folder / "README.md").write_text(page(load(folder)))


def page(results: Sequence[Result]) -> str:
    """Return the text of the page."""
    parts = [_HEAD, _verdict(results)]
    for name, title in _TITLES.items():
        found = [result for result in results if result[1].subject == name]
        if found:
            parts.append(_subject_section(title, found))
    return "\n".join([*parts, _TAIL])


def _verdict(results: Iterable[Result]) -> str:
    ours = [record for _, record in results if record.subject == "perdure"]
    kept = [record for record in ours if record.holds]
    faults = sum(sum(record.faults.values()) for record in ours)
    tasks = sum(record.tasks for record in ours)
    effects = sum(record.effects for record in ours)
    repeats = sum(record.flagged_repeats for record in ours)
    duplicates = sum(record.unflagged_duplicates for record in ours)
    lost, resumed = (sum(getattr(record, what) for record in ours) for what in ("lost", "resumes"))
    return (
        f"**Perdure kept its promises in {len(kept)} of {len(ours)} runs**: {tasks:,} tasks played under "
        f"{faults:,} faults, {effects:,} effects, {repeats:,} flagged repeats, {duplicates} unflagged "
        f"duplicates, {lost} tasks lost; {resumed} parked runs were resumed.\n"
    )


def _subject_section(title: str, results: Sequence[Result]) -> str:
    lines = [f"## {title}\n", *_head_lines(head for head, _ in results)]
    lines.append(
        "| kind | seed | date | version | faults | finished | right | equal | effects | flagged repeats "
        "| unflagged duplicates | models | stall | resumed | lost | runs |"
    )
    lines.append("| --- | ---: | --- | --- " + "| ---: " * 12 + "|")
    lines += [_row(head, record) for head, record in results]
    lines.append("")
    failures = [line for _, record in results for line in _failure_lines(record)]
    lines += failures + [""] * bool(failures)
    kinds = dict.fromkeys(record.kind for _, record in results)
    return "\n".join([*lines, *(f"- **{kind}**: {MEANING[kind]}" for kind in kinds), ""])  # type: ignore[index]


def _head_lines(heads: Iterable[Head]) -> list[str]:
    """Return a line for each environment: a table may hold results of several days and versions."""
    lines: dict[str, None] = {}
    for head in heads:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(head.versions.items()))
        lines[f"- {head.cores} cores, {head.system}, Python {head.python}; {versions}"] = None
    return [*lines, ""]


def _row(head: Head, record: Record) -> str:
    tasks = record.tasks
    cells = [
        record.kind,
        str(record.seed),
        head.at[:10],
        head.versions["perdure"],
        str(sum(record.faults.values())),
        f"{record.finished} of {tasks}",
        f"{record.right} of {tasks}",
        f"{record.equal} of {tasks}",
        f"{record.effects:,}",
        str(record.flagged_repeats),
        f"**{record.unflagged_duplicates}**",
        f"{record.models - record.needed_models:+d}",
        f"{record.stall_seconds:.1f}",
        str(record.resumes),
        f"**{record.lost}**",
        str(record.runs),
    ]
    return f"| {' | '.join(cells)} |"


def _failure_lines(record: Record) -> list[str]:
    """Return the lines below the table for a run that broke a promise."""
    if record.holds:
        return []
    missing = {"gold calls never carried out": record.missing, "faults that never happened": record.unfired}
    counts = ", ".join(f"{what}: {count}" for what, count in missing.items() if count)
    lines = [f"- {record.kind}, seed {record.seed}: {counts or 'see the table'}"]
    return lines + [f"    - `{' '.join(note.replace('`', ' ').split())[:300]}`" for note in record.notes]
