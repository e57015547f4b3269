"""Command `perdure replay-check`: checks that this code can continue the runs that other code began."""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from temporalio.client import WorkflowHistory
from temporalio.runtime import Runtime, TelemetryConfig

from perdure.errors import NotReachable
from perdure.settings import load_settings

from ..connection import connect_temporal
from ..load import load_files
from ..plugin import PerdurePlugin
from ..worker import exit_now, print_stderr, run_process
from .gate import HINTS, Check, Gate, failed_check
from .histories import Recorder, Source, Unread, histories_in_files, histories_on_server


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Values of the command line."""

    files: list[str]
    address: str | None
    namespace: str | None
    task_queue: str | None
    histories: Path | None
    query: str | None
    limit: int
    record: Path | None
    json: bool


def _parse(arguments: Sequence[str] | None) -> _Arguments:
    parser = argparse.ArgumentParser("perdure replay-check", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="path/to/file.py, or package.module")
    parser.add_argument("--address", help="Temporal server, host:port")
    parser.add_argument("--namespace", help="Temporal namespace")
    parser.add_argument("--task-queue", help="task queue of the runs")
    parser.add_argument("--histories", type=Path, metavar="DIR", help="read recorded histories from there")
    parser.add_argument("--query", help="visibility query; without it, all open runs")
    parser.add_argument("--limit", type=int, default=200, help="number of histories (200)")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the histories there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = _Arguments(**vars(parser.parse_args(arguments)))
    if args.histories is not None and (args.query or args.record):
        parser.error("--histories reads recorded histories: leave out --query and --record")
    return args


async def _check_all(args: _Arguments) -> None:
    settings = load_settings(address=args.address, namespace=args.namespace, task_queue=args.task_queue)
    definitions = load_files(args.files)
    plugin = PerdurePlugin(definitions.agents, models=definitions.models, settings=settings)
    gate = Gate(plugin, settings.namespace)
    if args.histories is not None:
        histories = histories_in_files(args.histories, args.limit)
    else:
        temporal = await connect_temporal(settings, [plugin])
        source = Source(temporal=temporal, task_queue=settings.task_queue, query=args.query, limit=args.limit)
        histories = histories_on_server(source)
    recorder = Recorder(folder=args.record) if args.record else None
    checks: list[Check] = []
    async for check in _check_each(gate, histories, recorder):
        checks.append(check)
        if not args.json:
            sys.stdout.write(f"{check.line()}\n")
            sys.stdout.flush()
    exit_now(_report(args, checks, set(plugin.members)))


async def _check_each(
    gate: Gate, histories: AsyncIterator[WorkflowHistory | Unread], recorder: Recorder | None
) -> AsyncIterator[Check]:
    async for history in histories:
        if isinstance(history, Unread):
            yield failed_check({"id": history.id}, "unread", history.problem)
            continue
        check = await gate.check(history)
        yield check
        # An unread history still holds references to a blob store that may be gone when it is replayed.
        if recorder is not None and check.verdict != "unread":
            recorder.keep(history)


def _report(args: _Arguments, checks: Sequence[Check], defined: set[str]) -> int:
    """Print a summary; return 0, 1 if this code must not get these runs, or 2 if some were not checked."""
    counts = Counter(check.verdict for check in checks)
    if args.json:
        document = {"counts": counts, "histories": [asdict(check) for check in checks]}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    totals = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print_stderr(f"replayed {len(checks)} histories: {totals}" if checks else "no history was found")
    for verdict, hint in HINTS.items():
        if counts[verdict]:
            print_stderr(f"{verdict}: {hint}")
    _report_missing(checks, defined)
    if args.record:
        print_stderr(f"histories recorded in {args.record}")
    if counts["nondeterministic"] or counts["failed"]:
        return 1
    return 2 if counts["unread"] else 0


def _report_missing(checks: Sequence[Check], defined: set[str]) -> None:
    """Print the agents and tools that these runs need and these files do not define."""
    agents = sorted({check.agent for check in checks if check.agent} - defined)
    if agents:
        print_stderr(
            f"agents that these files do not define, so their tools are missing: {', '.join(agents)}"
        )
    missing = Counter(name for check in checks for name in check.missing)
    if missing:
        names = ", ".join(f"{name} (in {count} runs)" for name, count in sorted(missing.items()))
        print_stderr(f"may be called by these runs, and is not defined in these files: {names}")


async def _run(args: _Arguments) -> None:
    try:
        await _check_all(args)
    except NotReachable as error:
        # Not 5, as elsewhere: for this command 2 means that runs were not checked.
        print_stderr(f"error: nothing was checked: {error}")
        exit_now(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the histories, and end the process."""
    args = _parse(arguments)
    # Each failure is printed here in a line; the SDK would add its tracebacks.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)
    run_process(lambda: _run(args))


if __name__ == "__main__":
    main()
