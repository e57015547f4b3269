"""`python -m perdure.workers.deploys.replay FILE...`: can this code go on with what other code has begun?"""

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
class _Given:
    """The command line, read."""

    files: list[str]
    address: str | None
    namespace: str | None
    task_queue: str | None
    histories: Path | None
    query: str | None
    limit: int
    record: Path | None
    json: bool


def _read(arguments: Sequence[str] | None) -> _Given:
    parser = argparse.ArgumentParser("perdure replay-check", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="path/to/file.py, or package.module")
    parser.add_argument("--address", help="Temporal server, host:port")
    parser.add_argument("--namespace", help="Temporal namespace")
    parser.add_argument("--task-queue", help="task queue of the runs")
    parser.add_argument("--histories", type=Path, metavar="DIR", help="histories kept as JSON")
    parser.add_argument("--query", help="a visibility query, in place of all that is open")
    parser.add_argument("--limit", type=int, default=200, help="how many histories")
    parser.add_argument("--record", type=Path, metavar="DIR", help="keep the histories there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = _Given(**vars(parser.parse_args(arguments)))
    if given.histories is not None and (given.query or given.record):
        parser.error("--histories are there already: leave out --query and --record")
    return given


async def _check_all(given: _Given) -> None:
    settings = load_settings(address=given.address, namespace=given.namespace, task_queue=given.task_queue)
    loaded = load_files(given.files)
    plugin = PerdurePlugin(loaded.agents, models=loaded.models, settings=settings)
    gate = Gate(plugin, settings.namespace)
    if given.histories is not None:
        histories = histories_in_files(given.histories, given.limit)
    else:
        temporal = await connect_temporal(settings, [plugin])
        source = Source(
            temporal=temporal, task_queue=settings.task_queue, query=given.query, limit=given.limit
        )
        histories = histories_on_server(source)
    recorder = Recorder(folder=given.record) if given.record else None
    checks: list[Check] = []
    async for one in _checks(gate, histories, recorder):
        checks.append(one)
        if not given.json:
            sys.stdout.write(f"{one.line()}\n")
            sys.stdout.flush()
    code = _concluded(given, checks, set(plugin.members))
    exit_now(code)


async def _checks(
    gate: Gate, histories: AsyncIterator[WorkflowHistory | Unread], recorder: Recorder | None
) -> AsyncIterator[Check]:
    async for history in histories:
        if isinstance(history, Unread):
            yield failed_check({"id": history.id}, "unread", history.problem)
            continue
        checked = await gate.check(history)
        yield checked
        if recorder is not None and checked.verdict != "unread":
            recorder.keep(history)


def _concluded(given: _Given, checks: Sequence[Check], served: set[str]) -> int:
    """Tell what came of it: 0, 1 for code that must not be given these runs, 2 when some were not checked."""
    counts = Counter(one.verdict for one in checks)
    if given.json:
        plain = {"counts": counts, "histories": [asdict(one) for one in checks]}
        sys.stdout.write(json.dumps(plain, ensure_ascii=False) + "\n")
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print_stderr(
        f"replayed {len(checks)} histories: {told}" if checks else "nothing to check: no history was found"
    )
    for verdict, hint in HINTS.items():
        if counts[verdict]:
            print_stderr(f"{verdict}: {hint}")
    strangers = sorted({one.agent for one in checks if one.agent} - served)
    if strangers:
        print_stderr(
            f"not defined in these files, whose workers have no tools for them: {', '.join(strangers)}"
        )
    missing = Counter(one for check in checks for one in check.missing)
    if missing:
        told = ", ".join(f"{name} (in {count} of them)" for name, count in sorted(missing.items()))
        print_stderr(f"what these runs may call and these files do not define: {told}")
    if given.record:
        print_stderr(f"kept in {given.record}")
    if counts["nondeterministic"] or counts["failed"]:
        return 1
    return 2 if counts["unread"] else 0


async def _guarded(given: _Given) -> None:
    try:
        await _check_all(given)
    except NotReachable as error:
        print_stderr(f"error: nothing was checked: {error}")
        exit_now(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, and leave the process."""
    given = _read(arguments)
    # What goes wrong in a replay is said here, in a line; the SDK would add its tracebacks.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)
    run_process(lambda: _guarded(given))


if __name__ == "__main__":
    main()
