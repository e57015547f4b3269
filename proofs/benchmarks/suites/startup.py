"""Time until something can happen: imports, the command line, a worker."""

import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from ..bench import OURS, Record, bench
from ..processes import environment

TIMES = 15
_TEMPORAL = "import temporalio.client, temporalio.worker"


async def startup(venvs: Path, subjects: list[str]) -> AsyncIterator[Record]:
    """Of imports and commands, what they take beyond the interpreter and Temporal's SDK."""
    python = sys.executable
    base = [python, "-c", _TEMPORAL]
    wanted = {
        "import perdure": [python, "-c", f"{_TEMPORAL}; import perdure"],
        "import all names of perdure": [python, "-c", f"{_TEMPORAL}; from perdure import *"],
        "perdure --help": [str(Path(python).with_name("perdure")), "--help"],
        "perdure run --help": [str(Path(python).with_name("perdure")), "run", "--help"],
    }
    for what, command in wanted.items():
        _timed(command)
        pairs = [(_timed(command), _timed(base)) for _ in range(TIMES)]
        beyond = statistics.median(one - other for one, other in pairs)
        whole = statistics.median(one for one, _ in pairs)
        yield Record(
            suite="startup",
            subject="perdure",
            case={"what": what},
            values={"ms": beyond * 1000, "whole_ms": whole * 1000},
        )
    async with bench(venvs) as on:
        for subject in (one for one in subjects if one in OURS):
            took: list[float] = []
            for _ in range(5):
                began = time.time()
                async with on.process(subject, "worker", queue=on.id(subject)) as worker:
                    took.append(worker.ready_at - began)
            yield Record(
                suite="startup",
                subject=subject,
                case={"what": "start of a worker"},
                values={"ms": statistics.median(took) * 1000},
            )


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return time.perf_counter() - began
