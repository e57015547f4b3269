"""What all suites work with: one server, subjects' processes on it, and one run measured."""

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
    """One measurement, or why there is none."""

    suite: str
    subject: str
    case: dict[str, Any]
    round: int = 1
    values: dict[str, float] = field(default_factory=dict[str, float])
    error: str = ""

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in ("", {})})


async def recorded(
    suite: str, subject: str, case: dict[str, Any], measured: Awaitable[dict[str, float]], turn: int = 1
) -> Record:
    """The measurement as a record, or the error of the subject in its place."""
    try:
        return Record(suite=suite, subject=subject, case=case, round=turn, values=await measured)
    except Failed as error:
        return Record(suite=suite, subject=subject, case=case, round=turn, error=str(error))


@dataclass(frozen=True, kw_only=True)
class Names:
    """Of a subject's workflow and activities, as its history shows them."""

    workflow: str
    model: str
    tool: str


@dataclass
class Running:
    """A subject's worker and driver."""

    subject: str
    names: Names
    worker: Process
    driver: Process
    queue: str


@dataclass
class Bench:
    """A server, and what runs on it."""

    server: DevServer
    client: Client
    folder: Path
    venvs: Path
    count: int = 0

    def id(self, subject: str) -> str:
        """A workflow id that nobody has had."""
        self.count += 1
        return f"{subject}-{self.count}"

    @asynccontextmanager
    async def process(self, subject: str, role: str, *, queue: str, **more: Any) -> AsyncGenerator[Process]:
        """A process of a subject."""
        folder = self.folder / queue
        folder.mkdir(exist_ok=True)
        python = python_of(subject, self.venvs)
        where: dict[str, Any] = {"address": self.server.address, "queue": queue, "folder": folder}
        async with process(python, subject, role, **where, **more) as running:
            yield running

    @asynccontextmanager
    async def running(self, subject: str, **more: Any) -> AsyncGenerator[Running]:
        """A worker and a driver, warm: a short run has gone through them."""
        queue = self.id(f"queue-{subject}")
        async with (
            self.process(subject, "worker", queue=queue, **more) as worker,
            self.process(subject, "driver", queue=queue) as driver,
        ):
            for _ in range(2):
                await driver.ask("run", [Job(id=self.id(subject), steps=3)], 60)
            yield Running(subject, Names(**driver.names), worker, driver, queue)

    async def measured(self, running: Running, job: Job, *, within: float) -> dict[str, float]:
        """Run the job, and measure it.

        Raises:
            Failed: it failed, or did not end in time; the message says why.

        """
        pid, server = running.worker.pid, self.server.pid
        reset_peak(pid)
        worker_cpu, server_cpu = cpu_seconds(pid), cpu_seconds(server)
        try:
            answer = await running.driver.ask("run", [job], within)
        except Failed as error:
            raise Failed(await self._why(running, job, str(error))) from None
        steps = job.steps
        values = {
            "wall_ms": answer["seconds"] / steps * 1000,
            "worker_cpu_ms": (cpu_seconds(pid) - worker_cpu) / steps * 1000,
            "server_cpu_ms": (cpu_seconds(server) - server_cpu) / steps * 1000,
            "worker_peak_mb": memory_bytes(pid, peak=True) / 2**20,
        }
        if not running.names.workflow:
            return values | await self._evidence_elsewhere(running, job, values)
        found = await self.seen(running, job)
        expected = job.steps * job.calls
        if job.children:  # their work stands in histories of their own
            expected = found.results
        if found.results != expected or found.models != job.steps + 1:
            said = f"{found.results} results of {expected}, {found.models} model calls of {job.steps + 1}"
            raise Failed(f"its history does not show the work: {said}")
        times = sorted(found.step_times)
        return values | {
            "events": found.events / steps,
            "bytes": found.bytes / steps,
            "parts": found.parts,
            "step_p50_ms": quantile(times, 0.5) * 1000,
            "step_p99_ms": quantile(times, 0.99) * 1000,
            "first_model_ms": (found.first_model - found.began) * 1000,
        }

    async def seen(self, running: Running, job: Job) -> history.Seen:
        """What the history says of a run."""
        names = running.names
        return await history.seen(self.client, job.id, job, model=names.model, tool=names.tool)

    async def _evidence_elsewhere(
        self, running: Running, job: Job, values: dict[str, float]
    ) -> dict[str, float]:
        """Of a subject that does not run on Temporal: what its own store says."""
        answer = await running.driver.ask("evidence", [job], 120)
        found = json.loads(answer["each"][0]["output"])
        if found["tools"] != job.steps * job.calls or found["models"] != job.steps + 1:
            raise Failed(f"its store does not show the work: {found}")
        # Its polling for the end of a run is not counted against it.
        own = {"wall_ms": found["seconds"] / job.steps * 1000, "waited_ms": values["wall_ms"]}
        return own | {"bytes": found["bytes"] / job.steps, "server_cpu_ms": 0.0}

    async def _why(self, running: Running, job: Job, said: str) -> str:
        """The reason of a failure, as history has it; and an end to a run that is stuck."""
        if not running.names.workflow:
            return said
        with suppress(RPCError):
            found = await self.seen(running, job)
            said = f"{said}; after {found.models} model calls, {found.bytes / 2**20:.1f} MB of history"
            if found.trouble and "no answer within" in said:
                said += f"; its workflow task fails for ever: {found.trouble[:300]}"
        with suppress(RPCError):
            await self.client.get_workflow_handle(job.id).terminate()
        return said


@asynccontextmanager
async def bench(venvs: Path) -> AsyncGenerator[Bench]:
    """A tuned server of our own, with its database in a file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        db = Path(folder) / "temporal.db"
        async with DevServer.start(db=db, ui_port=False) as server:
            client = await Client.connect(server.address)
            yield Bench(server, client, Path(folder), venvs)


@asynccontextmanager
async def side_by_side(bench: Bench, subjects: Sequence[str], **more: Any) -> AsyncGenerator[list[Running]]:
    """Workers and drivers of several subjects at once, each on its own queue; they are asked in turns."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(bench.running(subject, **more)) for subject in subjects]


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which that share of sorted values lies; 0 of none."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, round(q * (len(values) - 1)))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Smallest, median, largest."""
    return min(values), statistics.median(values), max(values)


def machine() -> dict[str, Any]:
    """Where this is run."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown"
    )
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "cores": cores, "system": platform.system(), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions(venvs: Path, subject: str) -> dict[str, str]:
    """What a subject's own environment holds, of the packages that matter."""
    wanted = {
        "temporalio", "perdure", "temporalio-openai-agents", "openai-agents", "pydantic-ai-slim", "dbos",
        "temporalio-strands-agents", "strands-agents", "temporalio-langgraph", "langgraph",
    }  # fmt: skip
    script = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    said = subprocess.run(
        [python_of(subject, venvs), "-I", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    found = dict(line.lower().split("==", 1) for line in said)
    return {name: found[name] for name in sorted(wanted & found.keys())}
