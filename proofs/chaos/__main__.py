"""Command line of the proof by chaos.

python -m proofs.chaos run                        # Perdure: all tasks under each kind of fault
python -m proofs.chaos run workers server --seed 2 --tasks 60
python -m proofs.chaos run --subjects strands pydantic_ai    # the peers, under their kinds of fault
python -m proofs.chaos quick                      # a smoke test: some tasks, several kinds of fault together
python -m proofs.chaos schedule workers --seed 1  # what would go wrong, and when
python -m proofs.chaos report                     # docs/chaos from the last results
"""

import argparse
import asyncio
import datetime as dt
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import environments, report
from .catalogue import Catalogue
from .conductor import Order, conduct
from .results import RESULTS, Head, keep
from .schedule import KINDS, Kind, schedule
from .subjects import NAMES, Subject, subject
from .verdict import Record

PEERS_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if not kind.startswith("disk"))
"""Kinds of fault for the peers, which keep nothing in files."""
_QUICK_TASKS = 20


def main() -> None:
    """Run the command given on the command line."""
    options = _read()
    match options.command:
        case "run":
            sys.exit(asyncio.run(_run(options)))
        case "quick":
            sys.exit(asyncio.run(_quick(options.seed)))
        case "schedule":
            _, _, catalogue = environments.bfcl_environment()
            size = _order(options.kind, options.seed, catalogue, options.tasks).size
            print(*schedule(options.kind, options.seed, size), sep="\n")
        case _:
            report.write(RESULTS)


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m proofs.chaos", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="play the tasks under kinds of faults")
    run.add_argument("kinds", nargs="*", metavar="KIND", choices=[[], *KINDS], help=", ".join(KINDS))
    run.add_argument("--subjects", nargs="*", default=["perdure"], choices=NAMES)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--tasks", type=int, default=0, help="only the first so many")
    run.add_argument("--within", type=float, default=1200.0, help="seconds after which a task is lost")
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--keep", type=Path, help="keep the logs of the runs in this folder")
    quick = commands.add_parser("quick", help="a smoke test, for every change")
    quick.add_argument("--seed", type=int, default=1)
    planned = commands.add_parser("schedule", help="print a schedule")
    planned.add_argument("kind", choices=KINDS)
    planned.add_argument("--seed", type=int, default=1)
    planned.add_argument("--tasks", type=int, default=0)
    commands.add_parser("report", help="write docs/chaos from the last results")
    return parser.parse_args()


async def _run(options: argparse.Namespace) -> int:
    """Run the chosen subjects and kinds; return 1 if Perdure broke a promise."""
    python, file, catalogue = environments.bfcl_environment()
    failed = 0
    for name in options.subjects:
        chosen = subject(name)
        for kind in _kinds(options, name, catalogue):
            order = _order(kind, options.seed, catalogue, options.tasks, file=file, python=python)
            without = _without_faults(name, order)
            more: dict[str, Any] = {"within": options.within}
            if kind != "none":
                more["expected"] = json.loads(without.read_text())
            if options.keep:
                at = dt.datetime.now(dt.UTC).strftime("%H%M%S")
                more["keep"] = options.keep / f"{name}-{kind}-{options.seed}-{at}"
            record, digests = await _conduct_or_report(replace(order, **more), chosen)
            if kind == "none":
                without.write_text(json.dumps(digests))
            print(format_record(record), flush=True)
            keep(options.out, Head.now(catalogue.versions), record)
            failed += name == "perdure" and not record.holds
    return 1 if failed else 0


def _kinds(options: argparse.Namespace, name: str, catalogue: Catalogue) -> list[Kind]:
    """Return the kinds to run; the run without faults comes first, unless an earlier one is stored."""
    usual = KINDS if name == "perdure" else PEERS_KINDS
    chosen: list[Kind] = [kind for kind in KINDS if kind in (options.kinds or usual)]
    order = _order("none", options.seed, catalogue, options.tasks)
    known = _without_faults(name, order).exists()
    return chosen if known or "none" in chosen else ["none", *chosen]


def _without_faults(name: str, order: Order) -> Path:
    """Return the file with the digests of the final states of the last run without faults."""
    return environments.FOLDER / f"without-faults-{name}-{order.seed}-{len(order.tasks)}.json"


async def _conduct_or_report(order: Order, chosen: Subject) -> tuple[Record, dict[str, str]]:
    """Conduct the run; for a peer that cannot be started, return a record with the reason."""
    try:
        return await conduct(order, chosen)
    except RuntimeError as error:
        if chosen.name == "perdure":
            raise
        many = len(order.tasks)
        why = f"{error}"[-400:]
        named: dict[str, Any] = {"subject": chosen.name, "kind": order.kind, "seed": order.seed}
        return Record(**named, tasks=many, lost=many, notes=[why]), {}


async def _quick(seed: int) -> int:
    """Play some tasks without faults, under killed workers, and under faults of each kind together.

    The killed workers have the product's defaults. Return 1 if a promise was broken.
    """
    python, file, catalogue = environments.bfcl_environment()
    expected, holds = None, True
    kinds: tuple[Kind, ...] = ("none", "workers", "together")
    for kind in kinds:
        order = _order(kind, seed, catalogue, _QUICK_TASKS, file=file, python=python)
        record, digests = await conduct(replace(order, expected=expected, within=150.0), subject("perdure"))
        expected = expected or digests
        holds = holds and record.holds
        print(format_record(record), flush=True)
    return 0 if holds else 1


def _order(
    kind: Kind,
    seed: int,
    catalogue: Catalogue,
    tasks: int,
    *,
    file: Path = Path(),
    python: Path = Path(),
) -> Order:
    chosen = catalogue.tasks
    if tasks:  # spread over the set, because neighbouring tasks work on the same APIs
        chosen = chosen[:: max(1, len(chosen) // tasks)][:tasks]
    return Order(kind=kind, seed=seed, tasks=chosen, catalogue=file, python=python)


def format_record(record: Record) -> str:
    """Return the record as one line for people, followed by its notes."""
    faults = sum(record.faults.values())
    line = (
        f"{'ok  ' if record.holds else 'FAIL'} {record.subject} {record.kind} seed {record.seed}: "
        f"{record.finished}/{record.tasks} finished, {record.right} right, {record.equal} equal, "
        f"{faults} faults, effects {record.effects}/{record.needed_effects}, "
        f"flagged repeats {record.flagged_repeats}, unflagged duplicates {record.unflagged_duplicates}, "
        f"models {record.models}/{record.needed_models}, "
        f"stall {record.stall_seconds} s, resumed {record.resumes}, lost {record.lost}, {record.seconds} s"
    )
    return "\n     ".join([line, *record.notes])


if __name__ == "__main__":
    main()
