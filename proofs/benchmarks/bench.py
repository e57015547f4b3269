"""Bench that all suites use: a server, subjects' processes on it, and the measurement of a run."""

import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.service import RPCError

from perdure.workers.dev.server import DevServer

from . import history
from .kit import Job
from .processes import Failed, Process, cpu_seconds, memory_bytes, process, python_of, reset_peak

TEMPORAL = ("floor", "perdure", "openai_agents", "pydantic_ai", "strands", "langgraph")
"""Subjects that run on Temporal."""
SUBJECTS = (*TEMPORAL, "dbos")
OURS = ("floor", "perdure")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Measurement, or the reason why there is none."""

    suite: str
    subject: str
    case: dict[str, Any]
    round: int = 1
    values: dict[str, float] = field(default_factory=dict[str, float])
    error: str = ""

    def line(self) -> str:
        """Return the record as a line of JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in ("", {})})


async def measure_record(
    suite: str, subject: str, case: dict[str, Any], measuring: Awaitable[dict[str, float]], turn: int = 1
) -> Record:
    """Await a measurement; return it, or the subject's error, as a record."""
    try:
        return Record(suite=suite, subject=subject, case=case, round=turn, values=await measuring)
    except Failed as error:
        return Record(suite=suite, subject=subject, case=case, round=turn, error=str(error))


@dataclass(frozen=True, kw_only=True)
class Names:
    """Type names of a subject's workflow and activities in its history."""

    workflow: str
    model: str
    tool: str


@dataclass
class Running:
    """Worker and driver of a subject."""

    subject: str
    names: Names
    worker: Process
    driver: Process
    queue: str


@dataclass
class Bench:
    """Server, and the processes on it."""

    server: DevServer
    client: Client
    folder: Path
    venvs: Path
    count: int = 0

    def id(self, subject: str) -> str:
        """Return a workflow id that is new on this server."""
        self.count += 1
        return f"{subject}-{self.count}"

    @asynccontextmanager
    async def process(self, subject: str, role: str, *, queue: str, **more: Any) -> AsyncGenerator[Process]:
        """Run a process of a subject."""
        folder = self.folder / queue
        folder.mkdir(exist_ok=True)
        python = python_of(subject, self.venvs)
        where: dict[str, Any] = {"address": self.server.address, "queue": queue, "folder": folder}
        async with process(python, subject, role, **where, **more) as running:
            yield running

    @asynccontextmanager
    async def running(self, subject: str, **more: Any) -> AsyncGenerator[Running]:
        """Run a worker and a driver, warmed up by short runs."""
        queue = self.id(f"queue-{subject}")
        async with (
            self.process(subject, "worker", queue=queue, **more) as worker,
            self.process(subject, "driver", queue=queue) as driver,
        ):
            # Imports, caches and connections are paid before the measurement.
            for _ in range(2):
                await driver.ask("run", [Job(id=self.id(subject), steps=3)], 60)
            yield Running(subject, Names(**driver.names), worker, driver, queue)

    async def measure(self, running: Running, job: Job, *, within: float) -> dict[str, float]:
        """Run the job, and measure it.

        Raises:
            Failed: the job failed, or did not end in time; the message has the reason.

        """
        pid, server = running.worker.pid, self.server.pid
        reset_peak(pid)  # the peak of an earlier job is not this job's
        worker_cpu, server_cpu = cpu_seconds(pid), cpu_seconds(server)
        try:
            answer = await running.driver.ask("run", [job], within)
        except Failed as error:
            raise Failed(await self._explain_failure(running, job, str(error))) from None
        steps = job.steps
        values = {
            "wall_ms": answer["seconds"] / steps * 1000,
            "worker_cpu_ms": (cpu_seconds(pid) - worker_cpu) / steps * 1000,
            "server_cpu_ms": (cpu_seconds(server) - server_cpu) / steps * 1000,
            "worker_peak_mb": memory_bytes(pid, peak=True) / 2**20,
        }
        if not running.names.workflow:
            return values | await self._read_own_store(running, job, values)
        found = await self.read_history(running, job)
        expected = job.steps * job.calls
        if job.children:  # the children's work is in their own histories
            expected = found.results
        if found.results != expected or found.models != job.steps + 1:
            counts = f"{found.results} results of {expected}, {found.models} model calls of {job.steps + 1}"
            raise Failed(f"its history does not show the work: {counts}")
        times = sorted(found.step_times)
        return values | {
            "events": found.events / steps,
            "bytes": found.bytes / steps,
            "parts": found.parts,
            "step_p50_ms": quantile(times, 0.5) * 1000,
            "step_p99_ms": quantile(times, 0.99) * 1000,
            "first_model_ms": (found.first_model - found.began) * 1000,
        }

    async def read_history(self, running: Running, job: Job) -> history.Evidence:
        """Read the evidence in the history of a run."""
        names = running.names
        return await history.read(self.client, job.id, job, model=names.model, tool=names.tool)

    async def _read_own_store(self, running: Running, job: Job, values: dict[str, float]) -> dict[str, float]:
        """Read the evidence in the store of a subject that does not run on Temporal."""
        answer = await running.driver.ask("evidence", [job], 120)
        found = json.loads(answer["each"][0]["output"])
        if found["tools"] != job.steps * job.calls or found["models"] != job.steps + 1:
            raise Failed(f"its store does not show the work: {found}")
        # The polling for the end of a run is not counted: the store has times of its own.
        own = {"wall_ms": found["seconds"] / job.steps * 1000, "waited_ms": values["wall_ms"]}
        return own | {"bytes": found["bytes"] / job.steps, "server_cpu_ms": 0.0}

    async def _explain_failure(self, running: Running, job: Job, reason: str) -> str:
        """Return the reason of a failure with details from history; terminate a run that is stuck."""
        if not running.names.workflow:
            return reason
        with suppress(RPCError):
            found = await self.read_history(running, job)
            reason = f"{reason}; after {found.models} model calls, {found.bytes / 2**20:.1f} MB of history"
            if found.trouble and "no answer within" in reason:
                reason += f"; its workflow task fails again and again: {found.trouble[:300]}"
        with suppress(RPCError):
            await self.client.get_workflow_handle(job.id).terminate()
        return reason


@asynccontextmanager
async def bench(venvs: Path) -> AsyncGenerator[Bench]:
    """Run a tuned server of our own, with its database in a file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        db = Path(folder) / "temporal.db"
        async with DevServer.start(db=db, ui_port=False) as server:
            client = await Client.connect(server.address)
            yield Bench(server, client, Path(folder), venvs)


@asynccontextmanager
async def side_by_side(bench: Bench, subjects: Sequence[str], **more: Any) -> AsyncGenerator[list[Running]]:
    """Run workers and drivers of several subjects at once, each on its own queue."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(bench.running(subject, **more)) for subject in subjects]


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value below which the share `q` of the sorted values lies; 0 without values."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, round(q * (len(values) - 1)))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the smallest value, the median and the largest."""
    return min(values), statistics.median(values), max(values)


def machine() -> dict[str, Any]:
    """Describe this machine."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown"
    )
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "cores": cores, "system": platform.system(), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions(venvs: Path, subject: str) -> dict[str, str]:
    """Return the versions of the relevant packages in a subject's environment."""
    wanted = {
        "temporalio", "perdure", "temporalio-openai-agents", "openai-agents", "pydantic-ai-slim", "dbos",
        "temporalio-strands-agents", "strands-agents", "temporalio-langgraph", "langgraph",
    }  # fmt: skip
    script = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    lines = subprocess.run(
        [python_of(subject, venvs), "-I", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    found = dict(line.lower().split("==", 1) for line in lines)
    return {name: found[name] for name in sorted(wanted & found.keys())}
