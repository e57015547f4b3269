"""Command line of the benchmarks: measure suites, and write the report.

python -m proofs.benchmarks run steps throughput        # some suites
python -m proofs.benchmarks run --all                   # all of them: more than an hour
python -m proofs.benchmarks run steps --subjects floor perdure --steps 50 --sizes 2048 --rounds 1
python -m proofs.benchmarks quick                       # counts and bytes only, for CI
python -m proofs.benchmarks report                      # docs/benchmarks from the last results
"""

import argparse
import asyncio
import datetime as dt
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from . import environments, quick, simulate
from .bench import SUBJECTS, Record, machine, versions
from .suites import fanout, idle, recovery, startup, streaming, throughput
from .suites import steps as steps_suite
from .suites import wire as wire_suite

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"

Suite = Callable[[Path, argparse.Namespace], AsyncIterator[Record]]


def _steps(venvs: Path, options: argparse.Namespace) -> AsyncIterator[Record]:
    plan = steps_suite.Plan(steps=options.steps, sizes=options.sizes, rounds=options.rounds)
    return steps_suite.steps(venvs, options.subjects, plan)


def _wire(venvs: Path, options: argparse.Namespace) -> AsyncIterator[Record]:
    lengths = [steps for steps in wire_suite.STEPS if steps in options.steps] or options.steps
    plan = wire_suite.Plan(steps=lengths, apis=options.apis, rounds=options.rounds)
    return wire_suite.wire(venvs, options.subjects, plan)


SUITES: dict[str, Suite] = {
    "steps": _steps,
    "throughput": lambda venvs, options: throughput.throughput(venvs, options.subjects, options.rounds),
    "fanout": lambda venvs, options: fanout.fanout(venvs, options.subjects, options.rounds),
    "recovery": lambda venvs, options: recovery.recovery(venvs, options.subjects, options.rounds),
    "idle": lambda venvs, options: idle.idle(venvs, options.subjects, options.agents),
    "streaming": lambda venvs, options: streaming.streaming(venvs, options.subjects),
    "wire": _wire,
    "startup": lambda venvs, options: startup.startup(venvs, options.subjects),
}


def main() -> None:
    """Run the command given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m proofs.benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure suites")
    run.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    run.add_argument("--all", action="store_true")
    run.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=SUBJECTS)
    run.add_argument("--steps", nargs="*", type=int, default=list(steps_suite.STEPS))
    run.add_argument("--sizes", nargs="*", type=int, default=list(steps_suite.SIZES))
    run.add_argument("--apis", nargs="*", default=list(wire_suite.SUBJECTS), choices=wire_suite.SUBJECTS)
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--agents", type=int, default=idle.AGENTS)
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--venvs", type=Path, default=environments.FOLDER)
    commands.add_parser("quick", help="counts and bytes only, for every change")
    commands.add_parser("report", help="write docs/benchmarks from the last results")
    simulation = commands.add_parser("simulate", help="the capacity model, checked against a measured run")
    simulation.add_argument("--runs", type=int, default=1000)
    simulation.add_argument("--seconds-a-step", type=float, default=10.0)
    simulation.add_argument("--working", type=float, default=0.2)
    options = parser.parse_args()
    match options.command:
        case "run":
            asyncio.run(_run(options))
        case "quick":
            sys.exit(_quick())
        case "simulate":
            load = simulate.Load(
                runs=options.runs, seconds_a_step=options.seconds_a_step, working=options.working
            )
            sys.exit(asyncio.run(simulate.simulate(environments.FOLDER, load)))
        case _:
            from . import plots, report

            report.write(RESULTS)
            plots.draw(RESULTS)


def _quick() -> int:
    findings = asyncio.run(quick.quick(environments.FOLDER))
    print(*findings, sep="\n")
    failed = sum(not finding.is_fine for finding in findings)
    print(f"{len(findings) - failed} passed, {failed} failed")
    return 1 if failed else 0


async def _run(options: argparse.Namespace) -> None:
    for subject in options.subjects:
        environments.make(subject, options.venvs)
    for name in list(SUITES) if options.all else options.suites:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{name}.jsonl"
        head: dict[str, Any] = {
            "suite": name,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {subject: versions(options.venvs, subject) for subject in options.subjects},
            "command": f"python -m proofs.benchmarks {' '.join(_repeatable(sys.argv[1:]))}",
        }
        with path.open("w") as file:
            file.write(json.dumps(head) + "\n")
            async for record in SUITES[name](options.venvs, options):
                file.write(record.line() + "\n")
                file.flush()
                print(_format(record), flush=True)


def _repeatable(words: list[str]) -> list[str]:
    """Return the command line without folders of this machine."""
    return [word for n, word in enumerate(words) if not {word, words[n - 1]} & {"--out", "--venvs"}]


def _format(record: Record) -> str:
    case = " ".join(f"{key}={value}" for key, value in record.case.items())
    values = "  ".join(f"{key} {value:.1f}" for key, value in record.values.items())
    return f"{record.suite} {record.subject:14} {case:22} {record.error or values}"


if __name__ == "__main__":
    main()
