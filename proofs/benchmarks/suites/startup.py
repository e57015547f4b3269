"""Start of a process: imports, the command line, a worker."""

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
    """Measure imports and commands beyond the interpreter with Temporal's SDK, and the start of a worker."""
    python = sys.executable
    base = [python, "-c", _TEMPORAL]
    wanted = {
        "import perdure": [python, "-c", f"{_TEMPORAL}; import perdure"],
        "import all names of perdure": [python, "-c", f"{_TEMPORAL}; from perdure import *"],
        "perdure --help": [str(Path(python).with_name("perdure")), "--help"],
        "perdure run --help": [str(Path(python).with_name("perdure")), "run", "--help"],
    }
    for what, command in wanted.items():
        _time(command)  # the first start fills the bytecode cache
        # In pairs, so that a slow moment of the machine meets both sides.
        pairs = [(_time(command), _time(base)) for _ in range(TIMES)]
        beyond = statistics.median(took - base_took for took, base_took in pairs)
        total = statistics.median(took for took, _ in pairs)
        yield Record(
            suite="startup",
            subject="perdure",
            case={"what": what},
            values={"ms": beyond * 1000, "whole_ms": total * 1000},
        )
    async with bench(venvs) as on:
        for subject in (name for name in subjects if name in OURS):
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


def _time(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return time.perf_counter() - began
