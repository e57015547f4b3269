"""The soak: a steady load for hours, and whether anything grows.

python -m proofs.soak run --minutes 120      # then the page; fails when something grows
python -m proofs.soak report                 # the page and the picture anew, from the last samples
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from perdure.settings import Settings, load_settings
from perdure.starter.client.connect import Client, connect
from perdure.workers.dev.server import DevServer, free_port
from proofs.benchmarks.bench import machine

from . import report
from .load import TALKERS, Tally, load
from .samples import cached_workflows, held, of_folder, of_system

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "soak"
WORKERS = 2
EVERY = 10.0
CONTINUE_AT = 400
TRANSCRIPT_CACHE_MB = 4
BLOB_CACHE_MB = 4
CACHED = 60
"""Most runs that a worker keeps in memory."""
_READY_WITHIN = 60.0
_SETTLED_WITHIN = 60.0


@dataclass
class Worker:
    """A worker process, and where its metrics are."""

    process: asyncio.subprocess.Process
    metrics_port: int

    async def sample(self) -> dict[str, float]:
        """What it holds now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"?\n")
        told = json.loads(await asyncio.wait_for(self.process.stdout.readline(), EVERY))
        cached = await asyncio.to_thread(cached_workflows, self.metrics_port)
        return {**of_system(self.process.pid), **told, "cached": cached}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that runs, and the file that is written."""

    server: DevServer
    workers: list[Worker]
    client: Client
    home: Path
    file: IO[str]
    began: float

    async def sample(self, *, loaded: bool) -> None:
        """Look at every process once, and write down what was seen."""
        workers = {f"worker {n}": await worker.sample() for n, worker in enumerate(self.workers, 1)}
        processes = {
            **workers,
            "driver": {**of_system(os.getpid()), **held()},
            "server": of_system(self.server.pid),
            "database": of_folder(self.home / "server"),
            "blobs": of_folder(self.home / "blobs"),
        }
        seconds = round(time.monotonic() - self.began, 1)
        self.write({"seconds": seconds, "loaded": loaded, "processes": processes})

    def write(self, line: dict[str, Any]) -> None:
        """One line of JSON, at once on disk for whoever looks."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


@asynccontextmanager
async def _worker(settings: Settings, log: IO[bytes]) -> AsyncGenerator[Worker]:
    port = free_port()
    environment = {
        **os.environ,
        "PERDURE_HOME": str(settings.home),
        "PERDURE_ADDRESS": settings.address,
        "PERDURE_LOG_LEVEL": "error",
        "PERDURE_METRICS": "prometheus",
        "PERDURE_METRICS_ADDRESS": f"127.0.0.1:{port}",
        "PERDURE_TRANSCRIPT_CACHE_BYTES": str(TRANSCRIPT_CACHE_MB * 2**20),
        "PERDURE_BLOB_CACHE_BYTES": str(BLOB_CACHE_MB * 2**20),
        "PERDURE_MAX_CACHED_WORKFLOWS": str(CACHED),
        "PERDURE_GRACEFUL_SHUTDOWN_TIMEOUT": "5s",
    }
    words = [sys.executable, "-m", "proofs.soak.worker", "proofs.soak.agents"]
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        cwd=RESULTS.parent.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    try:
        yield Worker(process, port + 1)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def _stage(file: IO[str], folder: Path) -> AsyncGenerator[Stage]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        log = stack.enter_context((folder / "workers.log").open("wb"))  # for whoever looks into a failure
        continue_at = {"limit.historyCount.suggestContinueAsNew": str(CONTINUE_AT)}
        starting = DevServer.start(
            db=home / "server" / "temporal.db", ui_port=False, dynamic_config=continue_at
        )
        server = await stack.enter_async_context(starting)
        settings = load_settings(home=home, address=server.address, blob_cache_bytes=BLOB_CACHE_MB * 2**20)
        workers = [await stack.enter_async_context(_worker(settings, log)) for _ in range(WORKERS)]
        client = await connect(settings=settings)
        await _taken(client)
        yield Stage(
            server=server, workers=workers, client=client, home=home, file=file, began=time.monotonic()
        )


async def _taken(client: Client) -> None:
    async with asyncio.timeout(_READY_WITHIN):
        while not await client.has_worker():
            await asyncio.sleep(0.2)


async def _run(minutes: float, rate: float, folder: Path, note: str) -> None:
    head = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "command": f"SOAK_MINUTES={minutes:g} SOAK_RATE={rate:g} make soak",
        "rate": rate,
        "every": EVERY,
        "talkers": TALKERS,
        "continue_at": CONTINUE_AT,
        "transcript_cache_mb": TRANSCRIPT_CACHE_MB,
        "blob_cache_mb": BLOB_CACHE_MB,
        "cached": CACHED,
        "note": note,
    }
    with (folder / report.SAMPLES).open("w") as file:
        async with _stage(file, folder) as stage:
            stage.write(head)
            tally = Tally()
            over = asyncio.Event()
            loading = asyncio.create_task(load(stage.client, tally, rate, over))
            await _sampled(stage, minutes, loading)
            over.set()
            await loading
            await _settled(stage)
            stage.write({"done": dict(tally.done), "skipped": tally.skipped, "errors": tally.errors})


async def _sampled(stage: Stage, minutes: float, loading: "asyncio.Task[None]") -> None:
    """A sample at each tick, until the time is over."""
    ticks = max(2, round(minutes * 60 / EVERY))
    for tick in range(1, ticks + 1):
        await asyncio.sleep(max(0.0, stage.began + tick * EVERY - time.monotonic()))
        if loading.done():
            break
        await stage.sample(loaded=True)


async def _settled(stage: Stage) -> None:
    """Wait until no worker keeps a run, or long enough; the last sample says which."""
    until = time.monotonic() + _SETTLED_WITHIN
    while time.monotonic() < until:
        await asyncio.sleep(1)
        if not sum([(await worker.sample())["cached"] for worker in stage.workers]):
            break
    await stage.sample(loaded=False)


def _reported(folder: Path) -> int:
    from . import plot

    soak = report.write(folder)
    plot.draw(soak, folder)
    print(*(soak.problems or ["nothing grows"]), sep="\n")
    return 1 if soak.problems else 0


def main() -> int:
    """Do what the command line says; 1 when something grows, or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m proofs.soak")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="load, sample, judge")
    run.add_argument("--minutes", type=float, default=120.0)
    run.add_argument("--rate", type=float, default=1.0, help="deeds a second")
    run.add_argument("--note", default="", help="a remark for the page, such as that the machine was shared")
    for command in (run, commands.add_parser("report", help="the page anew, from the last samples")):
        command.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "run":
        options.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(options.minutes, options.rate, options.out, options.note))
    return _reported(options.out)


if __name__ == "__main__":
    sys.exit(main())
