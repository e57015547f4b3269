"""Workers as processes of their own, to be killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.settings import Settings

from . import crew

# Started in the background by a shell, all of this would inherit that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Crew:
    """A worker process, the ledger it writes, and the means to kill and replace it."""

    settings: Settings
    ledger: Path
    log: Path
    program: Sequence[str] = ("perdure.workers", "tests.process.crew")
    """Module that a worker runs, and its arguments."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def start(self) -> None:
        """Start a worker."""
        environment = {
            **os.environ,
            "CREW_LEDGER": str(self.ledger),
            "PERDURE_HOME": str(self.settings.home),
            "PERDURE_ADDRESS": self.settings.address,
            "PERDURE_TASK_QUEUE": self.settings.task_queue,
            "PERDURE_GRACEFUL_SHUTDOWN_TIMEOUT": "1s",
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *self.program],
                env=environment,
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)

    def beside(self, *program: str) -> Iterator["Crew"]:
        """Yield another crew with the same ledger, whose first worker runs; in the end none of its workers does."""
        other = Crew(settings=self.settings, ledger=self.ledger, log=self.log, program=program)
        other.start()
        try:
            yield other
        finally:
            other.end()

    def end(self) -> None:
        """End all workers."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def kill(self) -> None:
        """`kill -9` the newest worker, and wait until it is gone."""
        self.processes[-1].send_signal(signal.SIGKILL)
        self.processes[-1].wait()

    def stop(self) -> int:
        """SIGTERM the newest worker, and wait for its exit code."""
        self.processes[-1].terminate()
        return self.processes[-1].wait(timeout=60)

    def happened(self, what: str | None = None) -> list[tuple[str, str, str]]:
        """What the ledger says, in order."""
        with closing(sqlite3.connect(self.ledger, timeout=30)) as db:
            rows = db.execute("select what, run, detail from happened order by rowid").fetchall()
        return [row for row in rows if what in (None, row[0])]

    def effects(self) -> list[tuple[str, str]]:
        """Run and tool of each effect that was done."""
        with closing(sqlite3.connect(self.ledger, timeout=30)) as db:
            return db.execute("select run, tool from effects order by rowid").fetchall()


@pytest.fixture
def workers(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Crew]:
    """A worker of the crew, or of the module that the test module names as `CREW`."""
    ledger = tmp_path / "ledger.db"
    crew.prepare(ledger)
    module = str(getattr(cast("Any", request.module), "CREW", "tests.process.crew"))
    program = ("perdure.workers", module)
    made = Crew(settings=settings, ledger=ledger, log=tmp_path / "worker.log", program=program)
    made.start()
    try:
        yield made
    finally:
        made.end()
