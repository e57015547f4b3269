"""One run: starts the parts, plays the tasks, has things go wrong when their moment comes, and counts."""

import asyncio
import json
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from .catalogue import Task
from .environments import faked_clock
from .processes import Linked, Server, Worker, fill_disk, ours
from .proxy import Line, Proxy, proxied
from .schedule import Fault, Kind, Size, schedule
from .script import steps
from .subjects import Played, Subject, Where
from .verdict import Record, Seen, counted, digests

WORKERS = 3
AT_ONCE = 16
"""Tasks that are played at the same time."""
_ON_DUTY_EVERY = 1.0
_LONG_RESULTS = 4096
"""Bytes that each result is made longer by, where the disk is what goes wrong."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run."""

    kind: Kind
    seed: int
    tasks: Sequence[Task]
    catalogue: Path
    python: Path
    """The interpreter of the set's environment."""
    expected: Mapping[str, str] | None = None
    """Final states of the run without faults, as digests."""
    within: float = 1200.0
    """Seconds after which what has not finished is lost."""
    keep: Path | None = None
    """Where the logs of the run are kept; None: nowhere."""

    @property
    def size(self) -> Size:
        """How much there is to do."""
        models = sum(steps(task, self.seed) for task in self.tasks)
        return Size(tasks=len(self.tasks), effects=sum(task.calls for task in self.tasks), models=models)

    @property
    def is_about_disks(self) -> bool:
        """Whether results are to go to the blob store."""
        return self.kind.startswith("disk")


@dataclass
class Stage:
    """The parts of a run, and the faults that have not happened yet."""

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
    """Whether the workers' disk is full."""
    _outage: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Outages come one after the other."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is out just now."""
        return not self._outage.locked()

    async def listen(self, part: Linked) -> None:
        """Do what is to be done at each moment that this part tells of, until it ends."""
        async for said in part.told():
            fault = self.faults.pop(said["fault"])
            self.fired[f"{fault.what} {fault.target}".strip()] += 1
            if "done" not in said:
                task = asyncio.create_task(self._strike(fault, part, said["worker"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _strike(self, fault: Fault, part: Linked, worker: str) -> None:
        if fault.what != "kill":
            await part.go(fault.id)
            async with self._outage:
                await self._out(fault)
        elif fault.target == "server":
            async with self._outage:
                await self.server.kill()
                await part.go(fault.id)
                await self.server.start()
        elif fault.target == "tools":
            await self.tools.kill()
            await self.start_tools()
        else:
            for name, one in self.workers.items():
                if fault.target == "workers" or name == worker:
                    one.kill()
            await part.go(fault.id)

    async def _out(self, fault: Fault) -> None:
        """Have something be out for a while."""
        match fault.what:
            case "line":
                which, line = fault.target.split()
                self.lines[which].set(cast("Line", line))
                await asyncio.sleep(fault.seconds)
                self.lines[which].set("open")
            case "disk":
                self.fill(full=True)
                await asyncio.sleep(fault.seconds)
                self.fill(full=False)
            case "clock":
                set_clock(self.folder, fault.seconds)
            case other:
                raise ValueError(f"nobody knows how to do {other!r}")

    def fill(self, *, full: bool) -> None:
        """Fill the workers' disk, or make room again."""
        self.is_full = full
        for worker in self.workers.values():
            if worker.pid is not None:
                fill_disk(worker.pid, full=full)

    def born(self, pid: int) -> None:
        """A worker was started: it finds the disk as it is."""
        if self.is_full:
            fill_disk(pid, full=True)

    async def start_tools(self) -> None:
        """Start the tools' process, on its journal and its port, with the faults that are left for it."""
        left = json.dumps([asdict(fault) for fault in self.faults.values() if fault.where == "tool"])
        await self.tools.start("--port", str(self.tools.port), "--faults", left)
        listening = asyncio.create_task(self.listen(self.tools))
        self._tasks.add(listening)
        listening.add_done_callback(self._tasks.discard)

    async def start_provider(self) -> None:
        """Start the provider."""
        left = json.dumps([asdict(fault) for fault in self.faults.values() if fault.where == "model"])
        await self.provider.start("--faults", left)
        listening = asyncio.create_task(self.listen(self.provider))
        self._tasks.add(listening)
        listening.add_done_callback(self._tasks.discard)

    async def judged(self) -> dict[str, Any]:
        """What the tools say of what was done."""
        url = f"http://127.0.0.1:{self.tools.port}/verdict"
        said = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=120).read())
        judged: dict[str, Any] = json.loads(said)
        return judged

    def asked(self) -> list[dict[str, Any]]:
        """The provider's log."""
        return [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


def set_clock(folder: Path, seconds: float) -> None:
    """Set the workers' wall clock ahead by so much, or back."""
    new = folder / "clock.new"
    new.write_text(f"{seconds:+.0f}\n")
    new.replace(folder / "clock")


async def conduct(order: Order, subject: Subject) -> tuple[Record, dict[str, str]]:
    """Run it; the counts, and the digests of the final states."""
    async with _folder(order) as folder, _stage(order, subject, folder) as stage:
        began = time.monotonic()
        client = await subject.connect(stage.server.address, _where(stage))
        duty = asyncio.create_task(_on_duty(stage, client))
        played = await _played(stage, client)
        duty.cancel()
        resumes = (await asyncio.gather(duty, return_exceptions=True))[0]
        judged = await stage.judged()
        seen = Seen(
            tasks=order.tasks,
            seed=order.seed,
            played=played,
            judged=judged,
            asked=stage.asked(),
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
            **counted(seen),
        )
        return record, digests(judged)


async def _played(stage: Stage, client: Any) -> list[Played]:
    """Play all tasks, so many at a time, until the time is over."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(task: Task) -> Played:
        async with room:
            return await stage.subject.play(client, task)

    running = {asyncio.create_task(one(task)): task for task in stage.order.tasks}
    done, late = await asyncio.wait(running, timeout=stage.order.within)
    for each in late:
        each.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    lost = [Played(task=running[each].id, error="did not finish in time") for each in late]
    return lost + [_result(each, running[each]) for each in done]


def _result(done: "asyncio.Task[Played]", task: Task) -> Played:
    error = done.exception()
    return done.result() if error is None else Played(task=task.id, error=f"{type(error).__name__}: {error}")


async def _on_duty(stage: Stage, client: Any) -> int:
    """Resume what waits for a person, whenever nothing is out; how often that was, once called off."""
    resumes = 0
    try:
        while True:
            await asyncio.sleep(_ON_DUTY_EVERY)
            if stage.is_quiet:
                resumes += await stage.subject.mend(client)
    except asyncio.CancelledError:
        return resumes


@asynccontextmanager
async def _folder(order: Order) -> AsyncGenerator[Path]:
    if order.keep is not None:
        order.keep.mkdir(parents=True, exist_ok=True)
        yield order.keep
        return
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@asynccontextmanager
async def _stage(order: Order, subject: Subject, folder: Path) -> AsyncGenerator[Stage]:
    """All parts, started; all of them gone when the block ends."""
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
            stage.lines[name] = await stack.enter_async_context(proxied(target))
        for worker in _workers(stage):
            stage.workers[worker.name] = worker
            stack.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.start() for worker in stage.workers.values()))
        yield stage


def _provider(order: Order, folder: Path) -> Linked:
    command = [
        ours(),
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
    through = "temporal" if stage.order.kind in ("temporal_line", "together") else None
    temporal = lines[through].port if through else stage.server.port
    model = (
        lines["provider"].port if stage.order.kind in ("provider_line", "together") else stage.provider.port
    )
    return Where(
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
        worker.born = stage.born
        workers.append(worker)
    return workers


def _settings(stage: Stage) -> dict[str, str]:
    """What this kind of fault needs of the workers."""
    match stage.order.kind:
        case "disk_full":
            return {"PERDURE_BLOB_THRESHOLD_BYTES": "1024"}
        case "disk_slow":
            return {"PERDURE_BLOB_THRESHOLD_BYTES": "1024", "CHAOS_FSYNC_SECONDS": "0.25"}
        case "clock":
            set_clock(stage.folder, 0)
            return {
                "LD_PRELOAD": str(faked_clock()),
                "FAKETIME_TIMESTAMP_FILE": str(stage.folder / "clock"),
                "FAKETIME_CACHE_DURATION": "1",  # without a cache each look at the clock reads the file
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        case _:
            return {}
