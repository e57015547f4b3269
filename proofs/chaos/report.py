"""The report: docs/chaos from the results, and whether what is promised was kept."""

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

The tasks are not ours: the multi-turn base set of BFCL (`bfcl-eval`), 200 conversations, 734 turns, 1,142
gold calls over 8 stateful APIs. They are fetched when this runs, and nothing of them is kept here. A scripted
model plays the gold calls over HTTP through the whole stack: a fake provider that streams, the real OpenAI
adapter, three worker processes, Temporal, and tools that reach the APIs in a process of their own. Sixteen
tasks are played at a time. Meanwhile parts are killed and cut off. In the end **the set's own checkers**
judge the state of the APIs' objects and all results against a replay of the gold calls.

What goes wrong, and at which call, follows from a seed (`python -m proofs.chaos schedule KIND --seed N`
prints it, and a test holds it); which task's call that is, is up to the race of the day.
A seed that was run again
is compared with the run before.

A run of fewer than 200 tasks takes them from everywhere in the set.

| column | what it says |
| --- | --- |
| faults | how many were done |
| finished | tasks whose caller got the right last word of each turn, and whose run then ended |
| right | final state and all results right by the set's own checkers |
| equal | final state equal to that of the run without faults, private attributes included |
| effects | calls that the tools carried out; there are as many gold calls |
| told | calls that came again under the key of one that was done: answered from the tools' journal |
| untold | effects beyond the gold calls: done twice, and the tools could not tell. **Must be 0** |
| models | model calls beyond those that the tasks need, of those a provider bills: paid for twice |
| stall | longest time between two steps of one task, in seconds |
| resumed | how often a parked run that does not try again by itself was resumed by the one on duty |
| lost | tasks that did not end as they should, or not at all. **Must be 0** |
| runs | how often in a row the seed came out the same: faults done, tasks ended right, effects |
"""
_TAIL = """\
## How to reproduce

```sh
make chaos          # all tasks under each kind of fault
make chaos-quick    # 30 tasks, faults of several kinds together; less than three minutes
python -m proofs.chaos run workers --seed 7 --tasks 60
python -m proofs.chaos run --subjects strands pydantic_ai
python -m proofs.chaos report
```

The figures are in `results.jsonl`, with the faults that were done by name, and the versions.

## What a fault does, and what it does not

- Stalls, and the model calls that a slow worker loses to its heartbeat's timeout, grow with the load of
  the machine: a killed worker is back in seconds on a quiet one, in half a minute on a crowded one.
  Read them as bounds, and compare no subject's with another's.
- Versions in a table's head are those of the conductor's environment; the peers' stand in their
  requirements.
- A worker's death is noticed by missing heartbeats: 5 s for a model call, 10 s for a tool.
- A tool's call that is lost before its effect (`kill -9` before it) never reached the tools: its retry
  did.
- The server is killed with its database on a local disk, which survives. A lost disk is not tried.
- `silent` swallows what is sent for 15 s, and connections that have lost something stay silent for
  good: the worker has to notice by itself, which Temporal's SDK does by its keep-alive after some 45 s.
  The workers have no other way to Temporal.
- A full disk is a limit of the operating system on each worker (`RLIMIT_FSIZE` of 0): each byte written
  to a file fails, with another error number than a full disk's. Results of tools go to the blob store
  in these runs; the model's answers are too small to, so none of these runs parks.
- A slow disk is a delay in each `fsync` of the workers. Reading is not slow, and the server's disk is
  not may_have_effect.
- The clock is faked by libfaketime in the workers, for Python and for the SDK's native code; monotonic
  clocks go on as they were, as they do on a real machine. The server's clock does not jump.
- The provider is never killed: from a worker's point of view that is `cut`.

## What is set otherwise than by default

Of Perdure: a tool may be tried 60 times (default 3), as an idempotent one may; its timeout is 5 s (one
minute); a model's is 10 s (ten minutes). Both answer in milliseconds here, and a stalled one is waited
for that long. Of the peers: the same timeouts, a heartbeat timeout of 5 s for Strands' model calls, and
a key that Temporal's docs advise, from the run's and the activity's id; neither has one of its own.
Their retries are their defaults.
"""


def write(folder: Path) -> None:
    """Write README.md beside the results."""
    (folder / "README.md").write_text(page(load(folder)))


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    parts = [_HEAD, _verdict(results)]
    for name, title in _TITLES.items():
        mine = [result for result in results if result[1].subject == name]
        if mine:
            parts.append(_of_subject(title, mine))
    return "\n".join([*parts, _TAIL])


def _verdict(results: Iterable[Result]) -> str:
    ours = [record for _, record in results if record.subject == "perdure"]
    kept = [record for record in ours if record.holds]
    faults = sum(sum(record.faults.values()) for record in ours)
    played = sum(record.tasks for record in ours)
    effects = sum(record.effects for record in ours)
    told, untold = (sum(getattr(record, what) for record in ours) for what in ("told", "untold"))
    lost, resumed = (sum(getattr(record, what) for record in ours) for what in ("lost", "resumes"))
    return (
        f"**Perdure kept its promises in {len(kept)} of {len(ours)} runs**: {played:,} tasks played under "
        f"{faults:,} faults, {effects:,} effects, {told:,} repeats that the tools were told of, {untold} "
        f"that they were not, {lost} tasks lost; {resumed} parked runs were resumed.\n"
    )


def _of_subject(title: str, results: Sequence[Result]) -> str:
    lines = [f"## {title}\n", _of_machine(results[-1][0])]
    lines.append(
        "| kind | seed | faults | finished | right | equal | effects | told | untold | models | stall "
        "| resumed | lost | runs |"
    )
    lines.append("| --- " + "| ---: " * 13 + "|")
    lines += [_row(record) for _, record in results]
    lines.append("")
    said = [note for _, record in results for note in _said(record)]
    lines += said + [""] * bool(said)
    kinds = dict.fromkeys(record.kind for _, record in results)
    return "\n".join([*lines, *(f"- **{kind}**: {MEANING[kind]}" for kind in kinds), ""])  # type: ignore[index]


def _of_machine(head: Head) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(head.versions.items()))
    return f"{head.at[:10]}, {head.cores} cores, {head.system}, Python {head.python}; {versions}.\n"


def _row(record: Record) -> str:
    of = record.tasks
    cells = [
        record.kind,
        str(record.seed),
        str(sum(record.faults.values())),
        f"{record.finished} of {of}",
        f"{record.right} of {of}",
        f"{record.equal} of {of}",
        f"{record.effects:,}",
        str(record.told),
        f"**{record.untold}**",
        f"{record.models - record.needed_models:+d}",
        f"{record.stall_seconds:.1f}",
        str(record.resumes),
        f"**{record.lost}**",
        str(record.runs),
    ]
    return f"| {' | '.join(cells)} |"


def _said(record: Record) -> list[str]:
    """What is to be said below the table of a run that did not keep everything."""
    if record.holds:
        return []
    beside = {"never done": record.missing, "faults that never came": record.unfired}
    counts = ", ".join(f"{what}: {count}" for what, count in beside.items() if count)
    lines = [f"- {record.kind}, seed {record.seed}: {counts or 'see the table'}"]
    return lines + [f"    - `{' '.join(note.replace('`', ' ').split())[:300]}`" for note in record.notes]
