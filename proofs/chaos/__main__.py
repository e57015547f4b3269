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
"""They keep nothing in files."""
_QUICK_TASKS = 30


def main() -> None:
    """Do what the command line says."""
    options = _read()
    match options.command:
        case "run":
            sys.exit(asyncio.run(_run(options)))
        case "quick":
            sys.exit(asyncio.run(_quick(options.seed)))
        case "schedule":
            _, _, catalogue = environments.of_the_set()
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
    quick = commands.add_parser("quick", help="a smoke, for every change")
    quick.add_argument("--seed", type=int, default=1)
    planned = commands.add_parser("schedule", help="print a schedule")
    planned.add_argument("kind", choices=KINDS)
    planned.add_argument("--seed", type=int, default=1)
    planned.add_argument("--tasks", type=int, default=0)
    commands.add_parser("report", help="write docs/chaos from the last results")
    return parser.parse_args()


async def _run(options: argparse.Namespace) -> int:
    """All that was asked for. 1 when Perdure did not keep what it promises."""
    python, file, catalogue = environments.of_the_set()
    failed = 0
    for name in options.subjects:
        of_it = subject(name)
        for kind in _kinds(options, name, catalogue):
            order = _order(kind, options.seed, catalogue, options.tasks, file=file, python=python)
            without = _without_faults(name, order)
            more: dict[str, Any] = {"within": options.within}
            if kind != "none":
                more["expected"] = json.loads(without.read_text())
            if options.keep:
                at = dt.datetime.now(dt.UTC).strftime("%H%M%S")
                more["keep"] = options.keep / f"{name}-{kind}-{options.seed}-{at}"
            record, digests = await _conducted(_changed(order, **more), of_it)
            if kind == "none":
                without.write_text(json.dumps(digests))
            print(shown(record), flush=True)
            keep(options.out, Head.now(catalogue.versions), record)
            failed += name == "perdure" and not record.holds
    return 1 if failed else 0


def _kinds(options: argparse.Namespace, name: str, catalogue: Catalogue) -> list[Kind]:
    """The kinds to run: what the others are compared with is the first, unless that was run before."""
    usual = KINDS if name == "perdure" else PEERS_KINDS
    chosen: list[Kind] = [kind for kind in KINDS if kind in (options.kinds or usual)]
    order = _order("none", options.seed, catalogue, options.tasks)
    known = _without_faults(name, order).exists()
    return chosen if known or "none" in chosen else ["none", *chosen]


def _without_faults(name: str, order: Order) -> Path:
    """Where the final states of the last run without faults are kept, as digests."""
    return environments.FOLDER / f"without-faults-{name}-{order.seed}-{len(order.tasks)}.json"


async def _conducted(order: Order, of_it: Subject) -> tuple[Record, dict[str, str]]:
    """The run; of a peer that cannot even be started, the reason."""
    try:
        return await conduct(order, of_it)
    except RuntimeError as error:
        if of_it.name == "perdure":
            raise
        many = len(order.tasks)
        why = f"{error}"[-400:]
        named: dict[str, Any] = {"subject": of_it.name, "kind": order.kind, "seed": order.seed}
        return Record(**named, tasks=many, lost=many, notes=[why]), {}


async def _quick(seed: int) -> int:
    """Some tasks, once without faults and once with some of each kind."""
    python, file, catalogue = environments.of_the_set()
    expected, holds = None, True
    for kind in ("none", "together"):
        order = _order(kind, seed, catalogue, _QUICK_TASKS, file=file, python=python)
        record, digests = await conduct(_changed(order, expected=expected, within=150.0), subject("perdure"))
        expected = expected or digests
        holds = holds and record.holds
        print(shown(record), flush=True)
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
    if tasks:  # from everywhere in the set: its neighbours work on the same APIs
        chosen = chosen[:: max(1, len(chosen) // tasks)][:tasks]
    return Order(kind=kind, seed=seed, tasks=chosen, catalogue=file, python=python)


def _changed(order: Order, **more: Any) -> Order:
    return Order(**{**vars(order), **more})


def shown(record: Record) -> str:
    """A record in a line, for people."""
    faults = sum(record.faults.values())
    said = (
        f"{'ok  ' if record.holds else 'FAIL'} {record.subject} {record.kind} seed {record.seed}: "
        f"{record.finished}/{record.tasks} finished, {record.right} right, {record.equal} equal, "
        f"{faults} faults, effects {record.effects}/{record.needed_effects}, told {record.told}, "
        f"untold {record.untold}, models {record.models}/{record.needed_models}, "
        f"stall {record.stall_seconds} s, resumed {record.resumes}, lost {record.lost}, {record.seconds} s"
    )
    return "\n     ".join([said, *record.notes])


if __name__ == "__main__":
    main()
