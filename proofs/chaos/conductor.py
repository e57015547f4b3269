"""Conductor of a run: it starts the parts, plays the tasks, causes the faults, and counts the results."""

import asyncio
import json
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from .catalogue import Task
from .environments import faketime_library
from .processes import Linked, Server, Worker, fill_disk, own_python, work_folder
from .proxy import Line, Proxy, open_proxy
from .schedule import Fault, Kind, Size, schedule
from .script import steps
from .subjects import Subject, TaskOutcome, Where
from .verdict import Evidence, Record, count_results, digests

WORKERS = 3
AT_ONCE = 16
"""Number of tasks that are played at the same time."""
_RESUME_EVERY = 1.0
_LONG_RESULTS = 4096
"""Bytes added to each result where the disk is what fails, so that results go to the blob store."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Run to be conducted: its tasks, its kind of fault and its seed."""

    kind: Kind
    seed: int
    tasks: Sequence[Task]
    catalogue: Path
    python: Path
    """Interpreter of the set's environment."""
    expected: Mapping[str, str] | None = None
    """Final states of the run without faults, as digests."""
    within: float = 1200.0
    """Seconds after which an unfinished task counts as lost."""
    keep: Path | None = None
    """Folder in which the logs of the run stay; None: a temporary one."""

    @property
    def size(self) -> Size:
        """Numbers of tasks, effects and model calls."""
        models = sum(steps(task, self.seed) for task in self.tasks)
        return Size(tasks=len(self.tasks), effects=sum(task.calls for task in self.tasks), models=models)

    @property
    def is_about_disks(self) -> bool:
        """True when the disk fails, so that results must go to the blob store."""
        return self.kind.startswith("disk")


@dataclass
class Stage:
    """Parts of a run, and the faults that have not happened yet."""

    order: Order
    subject: Subject
    folder: Path
    server: Server
    provider: Linked
    tools: Linked
    lines: dict[str, Proxy]
    workers: dict[str, Worker]
    faults: dict[int, Fault]
    fired: Counter[str] = field(default_factory=Counter[str])
    is_full: bool = False
    """True while the workers' disk is full."""
    _outage: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lock that keeps outages one after the other."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def is_quiet(self) -> bool:
        """True while there is no outage."""
        return not self._outage.locked()

    async def listen(self, part: Linked) -> None:
        """Cause each fault whose moment the part reports, until the part ends."""
        async for message in part.messages():
            fault = self.faults.pop(message["fault"])
            self.fired[f"{fault.what} {fault.target}".strip()] += 1
            if "done" not in message:  # else the part has carried the fault out itself
                task = asyncio.create_task(self._cause(fault, part, message["worker"]))
                self._tasks.add(task)  # asyncio itself keeps only a weak reference
                task.add_done_callback(self._tasks.discard)

    async def _cause(self, fault: Fault, part: Linked, worker: str) -> None:
        if fault.what != "kill":
            # The call goes on at once: it must meet the outage, not wait for its end.
            await part.release(fault.id)
            async with self._outage:
                await self._cause_outage(fault)
        elif fault.target == "server":
            async with self._outage:
                # Killed while the call still waits, so that its answer finds no server.
                await self.server.kill()
                await part.release(fault.id)
                await self.server.start()
        elif fault.target == "tools":
            # Nothing to release: the waiting call died with the process.
            await self.tools.kill()
            await self.start_tools()
        else:
            for name, process in self.workers.items():
                if fault.target == "workers" or name == worker:
                    process.kill()
            await part.release(fault.id)

    async def _cause_outage(self, fault: Fault) -> None:
        """Cause an outage, and end it after its time."""
        match fault.what:
            case "line":
                which, line = fault.target.split()
                self.lines[which].set_line(cast("Line", line))
                await asyncio.sleep(fault.seconds)
                self.lines[which].set_line("open")
            case "disk":
                self.fill(full=True)
                await asyncio.sleep(fault.seconds)
                self.fill(full=False)
            case "clock":
                set_clock(self.folder, fault.seconds)
            case unknown:
                raise ValueError(f"unknown kind of outage: {unknown!r}")

    def fill(self, *, full: bool) -> None:
        """Fill the workers' disk, or make room again."""
        self.is_full = full
        for worker in self.workers.values():
            if worker.pid is not None:
                fill_disk(worker.pid, full=full)

    def apply_disk_state(self, pid: int) -> None:
        """Let a worker that was just started find the disk as full as it is."""
        if self.is_full:
            fill_disk(pid, full=True)

    async def start_tools(self) -> None:
        """Start the tools' process on its journal and its port, with its remaining faults."""
        remaining = json.dumps([asdict(fault) for fault in self.faults.values() if fault.where == "tool"])
        await self.tools.start("--port", str(self.tools.port), "--faults", remaining)
        listening = asyncio.create_task(self.listen(self.tools))
        self._tasks.add(listening)
        listening.add_done_callback(self._tasks.discard)

    async def start_provider(self) -> None:
        """Start the provider with its faults."""
        remaining = json.dumps([asdict(fault) for fault in self.faults.values() if fault.where == "model"])
        await self.provider.start("--faults", remaining)
        listening = asyncio.create_task(self.listen(self.provider))
        self._tasks.add(listening)
        listening.add_done_callback(self._tasks.discard)

    async def fetch_verdict(self) -> dict[str, Any]:
        """Ask the tools for their verdict on all effects."""
        url = f"http://127.0.0.1:{self.tools.port}/verdict"
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=120).read())
        verdict: dict[str, Any] = json.loads(body)
        return verdict

    def read_provider_log(self) -> list[dict[str, Any]]:
        """Read the provider's log."""
        return [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


def set_clock(folder: Path, seconds: float) -> None:
    """Set the workers' wall clock ahead by `seconds`, or back if negative."""
    new = folder / "clock.new"
    new.write_text(f"{seconds:+.0f}\n")
    new.replace(folder / "clock")  # atomic: no worker may read half a number


async def conduct(order: Order, subject: Subject) -> tuple[Record, dict[str, str]]:
    """Conduct a run; return its record, and the digests of the final states."""
    with work_folder(order.keep, "chaos-") as folder:
        async with _stage(order, subject, folder) as stage:
            began = time.monotonic()
            # The caller reaches the server without a proxy: its own line is not under test.
            client = await subject.connect(stage.server.address, _where(stage))
            resuming = asyncio.create_task(_resume_while_quiet(stage, client))
            outcomes = await _play_all(stage, client)
            resuming.cancel()
            resumes = (await asyncio.gather(resuming, return_exceptions=True))[0]
            verdict = await stage.fetch_verdict()
            evidence = Evidence(
                tasks=order.tasks,
                seed=order.seed,
                outcomes=outcomes,
                verdict=verdict,
                provider_log=stage.read_provider_log(),
                expected=order.expected,
            )
            record = Record(
                subject=subject.name,
                kind=order.kind,
                seed=order.seed,
                resumes=resumes if isinstance(resumes, int) else 0,
                faults=dict(sorted(stage.fired.items())),
                unfired=len(stage.faults),
                deaths=sum(worker.deaths for worker in stage.workers.values()),
                seconds=round(time.monotonic() - began, 1),
                **count_results(evidence),
            )
            return record, digests(verdict)


async def _play_all(stage: Stage, client: Any) -> list[TaskOutcome]:
    """Play all tasks, `AT_ONCE` at a time; a task that is late counts as lost."""
    room = asyncio.Semaphore(AT_ONCE)

    async def play_one(task: Task) -> TaskOutcome:
        async with room:
            return await stage.subject.play(client, task)

    running = {asyncio.create_task(play_one(task)): task for task in stage.order.tasks}
    done, late = await asyncio.wait(running, timeout=stage.order.within)
    for playing in late:
        playing.cancel()
    await asyncio.gather(*late, return_exceptions=True)  # each has ended before the verdict is asked for
    lost = [TaskOutcome(task=running[playing].id, error="did not finish in time") for playing in late]
    return lost + [_outcome_of(ended, running[ended]) for ended in done]


def _outcome_of(ended: "asyncio.Task[TaskOutcome]", task: Task) -> TaskOutcome:
    error = ended.exception()
    return (
        ended.result()
        if error is None
        else TaskOutcome(task=task.id, error=f"{type(error).__name__}: {error}")
    )


async def _resume_while_quiet(stage: Stage, client: Any) -> int:
    """Resume parked runs while there is no outage; return their number when cancelled."""
    resumes = 0
    try:
        while True:
            await asyncio.sleep(_RESUME_EVERY)
            if stage.is_quiet:
                resumes += await stage.subject.resume_parked(client)
    except asyncio.CancelledError:
        return resumes


@asynccontextmanager
async def _stage(order: Order, subject: Subject, folder: Path) -> AsyncGenerator[Stage]:
    """Start all parts; stop them when the block ends."""
    # The stack ends the parts in reverse order: workers first, so that none sees the others go.
    async with AsyncExitStack() as stack:
        server = Server(folder)
        await server.start()
        stack.push_async_callback(server.stop)
        faults = schedule(order.kind, order.seed, order.size)
        stage = Stage(
            order=order,
            subject=subject,
            folder=folder,
            server=server,
            provider=_provider(order, folder),
            tools=_tools(order, folder),
            lines={},
            workers={},
            faults={fault.id: fault for fault in faults},
        )
        stack.push_async_callback(stage.provider.kill)
        stack.push_async_callback(stage.tools.kill)
        await stage.start_provider()
        await stage.start_tools()
        for name, target in (("temporal", server.port), ("provider", stage.provider.port)):
            stage.lines[name] = await stack.enter_async_context(open_proxy(target))
        for worker in _workers(stage):
            stage.workers[worker.name] = worker
            stack.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.start() for worker in stage.workers.values()))
        yield stage


def _provider(order: Order, folder: Path) -> Linked:
    command = [
        own_python(),
        "-m",
        "proofs.chaos.provider",
        "--catalogue",
        str(order.catalogue),
        "--seed",
        str(order.seed),
    ]
    return Linked([*command, "--log", str(folder / "asked.jsonl")], folder / "provider.log")


def _tools(order: Order, folder: Path) -> Linked:
    command = [
        str(order.python),
        "-m",
        "proofs.chaos.tools.service",
        "--journal",
        str(folder / "journal.jsonl"),
    ]
    long = ["--padding", str(_LONG_RESULTS)] if order.is_about_disks else []
    return Linked([*command, *long], folder / "tools.log")


def _where(stage: Stage) -> Where:
    lines = stage.lines
    # Kinds without a fault of a line go around the proxies, which have costs of their own.
    through = "temporal" if stage.order.kind in ("temporal_line", "together") else None
    temporal = lines[through].port if through else stage.server.port
    model = (
        lines["provider"].port if stage.order.kind in ("provider_line", "together") else stage.provider.port
    )
    return Where(
        kind=stage.order.kind,
        temporal=f"127.0.0.1:{temporal}",
        provider=f"http://127.0.0.1:{model}/v1",
        tools=f"http://127.0.0.1:{stage.tools.port}",
        catalogue=stage.order.catalogue,
        folder=stage.folder,
    )


def _workers(stage: Stage) -> list[Worker]:
    where, subject = _where(stage), stage.subject
    command = [str(subject.python()), *subject.command()]
    workers: list[Worker] = []
    for number in range(1, WORKERS + 1):
        name = f"worker-{number}"
        env = {**subject.environment(where, name), **_settings(stage)}
        worker = Worker(name, command, env, stage.folder / f"{name}.log")
        worker.on_start = stage.apply_disk_state
        workers.append(worker)
    return workers


def _settings(stage: Stage) -> dict[str, str]:
    """Return the settings of the workers that this kind of fault needs."""
    match stage.order.kind:
        case "disk_full":
            return {"PERDURE_BLOB_THRESHOLD_BYTES": "1024"}
        case "disk_slow":
            return {"PERDURE_BLOB_THRESHOLD_BYTES": "1024", "CHAOS_FSYNC_SECONDS": "0.25"}
        case "clock":
            set_clock(stage.folder, 0)
            return {
                "LD_PRELOAD": str(faketime_library()),
                "FAKETIME_TIMESTAMP_FILE": str(stage.folder / "clock"),
                "FAKETIME_CACHE_DURATION": "1",  # seconds; else each look at the clock reads the file
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        case _:
            return {}
