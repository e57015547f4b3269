"""Soak: a steady load for hours, and a check that nothing grows.

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
from .load import SESSIONS, Tally, load
from .samples import cached_workflows, sample_folder, sample_process, sample_self

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "soak"
WORKERS = 2
EVERY = 10.0
CONTINUE_AT = 400
TRANSCRIPT_CACHE_MB = 4
BLOB_CACHE_MB = 4
CACHED = 60
"""Maximum number of runs in a worker's cache."""
_READY_WITHIN = 60.0
_IDLE_WITHIN = 60.0


@dataclass
class Worker:
    """Worker process, and the port of its metrics."""

    process: asyncio.subprocess.Process
    metrics_port: int

    async def sample(self) -> dict[str, float]:
        """Return the numbers of what the worker holds now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"?\n")
        own = json.loads(await asyncio.wait_for(self.process.stdout.readline(), EVERY))
        cached = await asyncio.to_thread(cached_workflows, self.metrics_port)
        return {**sample_process(self.process.pid), **own, "cached": cached}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Processes of a soak, and the file of samples."""

    server: DevServer
    workers: list[Worker]
    client: Client
    home: Path
    file: IO[str]
    began: float

    async def sample(self, *, loaded: bool) -> None:
        """Sample every process once, and write the sample."""
        workers = {f"worker {n}": await worker.sample() for n, worker in enumerate(self.workers, 1)}
        processes = {
            **workers,
            "driver": {**sample_process(os.getpid()), **sample_self()},
            "server": sample_process(self.server.pid),
            "database": sample_folder(self.home / "server"),
            "blobs": sample_folder(self.home / "blobs"),
        }
        seconds = round(time.monotonic() - self.began, 1)
        self.write({"seconds": seconds, "loaded": loaded, "processes": processes})

    def write(self, line: dict[str, Any]) -> None:
        """Write a line of JSON and flush it, so that a running soak can be read."""
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
        cwd=RESULTS.parents[1],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    try:
        yield Worker(process, port + 1)  # the SDK's own metrics are one port above Perdure's
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def _stage(file: IO[str], folder: Path) -> AsyncGenerator[Stage]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        log = stack.enter_context((folder / "workers.log").open("wb"))  # for the analysis of a failure
        continue_at = {"limit.historyCount.suggestContinueAsNew": str(CONTINUE_AT)}
        starting = DevServer.start(
            db=home / "server" / "temporal.db", ui_port=False, dynamic_config=continue_at
        )
        server = await stack.enter_async_context(starting)
        settings = load_settings(home=home, address=server.address, blob_cache_bytes=BLOB_CACHE_MB * 2**20)
        workers = [await stack.enter_async_context(_worker(settings, log)) for _ in range(WORKERS)]
        client = await connect(settings=settings)
        await _wait_for_worker(client)
        yield Stage(
            server=server, workers=workers, client=client, home=home, file=file, began=time.monotonic()
        )


async def _wait_for_worker(client: Client) -> None:
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
        "sessions": SESSIONS,
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
            await _sample_until(stage, minutes, loading)
            over.set()
            await loading  # unfinished operations end before the last sample, or they would look like a leak
            await _wait_until_idle(stage)
            stage.write({"done": dict(tally.done), "skipped": tally.skipped, "errors": tally.errors})


async def _sample_until(stage: Stage, minutes: float, loading: "asyncio.Task[None]") -> None:
    """Take a sample at each tick until the time is over."""
    ticks = max(2, round(minutes * 60 / EVERY))
    for tick in range(1, ticks + 1):
        await asyncio.sleep(max(0.0, stage.began + tick * EVERY - time.monotonic()))
        if loading.done():  # the load itself failed
            break
        await stage.sample(loaded=True)


async def _wait_until_idle(stage: Stage) -> None:
    """Wait until no worker caches a run, at most `_IDLE_WITHIN` seconds; then take the last sample."""
    until = time.monotonic() + _IDLE_WITHIN
    while time.monotonic() < until:
        await asyncio.sleep(1)
        if not sum([(await worker.sample())["cached"] for worker in stage.workers]):
            break
    await stage.sample(loaded=False)


def _write_report(folder: Path) -> int:
    from . import plot

    soak = report.write(folder)
    plot.draw(soak, folder)
    print(*(soak.problems or ["nothing grows"]), sep="\n")
    return 1 if soak.problems else 0


def main() -> int:
    """Run the command given on the command line; return 1 when something grew or failed."""
    parser = argparse.ArgumentParser(prog="python -m proofs.soak")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="load, sample, judge")
    run.add_argument("--minutes", type=float, default=120.0)
    run.add_argument("--rate", type=float, default=1.0, help="operations a second")
    run.add_argument("--note", default="", help="a remark for the page, such as that the machine was shared")
    for command in (run, commands.add_parser("report", help="the page anew, from the last samples")):
        command.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "run":
        options.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(options.minutes, options.rate, options.out, options.note))
    return _write_report(options.out)


if __name__ == "__main__":
    sys.exit(main())
