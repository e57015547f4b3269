"""Real adapters over real HTTP to a provider on this machine: the worker's CPU a step over the length of a run.

Every subject calls the same provider by the library that it would use in production. The scripted model of Perdure,
which users' tests run, has no wire, and no peer.
"""

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ..bench import OURS, Bench, Record, Running, bench, measure_record, side_by_side
from ..kit import Job
from ..kit.real import ANTHROPIC, BEDROCK, OPENAI, SCRIPTED, Real
from ..processes import ROOT, Failed, environment

STEPS = (50, 200, 400)
SIZE = 2048
SUBJECTS = {
    ANTHROPIC: ("perdure", "pydantic_ai", "strands", "langgraph", "dbos"),
    OPENAI: ("perdure", "openai_agents", "pydantic_ai", "strands", "langgraph", "dbos"),
    BEDROCK: ("perdure", "pydantic_ai", "strands"),
    SCRIPTED: ("perdure",),
}
"""Subjects that call each API by a library of its vendor."""


@dataclass(frozen=True)
class Plan:
    """Numbers of steps, APIs, and rounds."""

    steps: Iterable[int] = STEPS
    apis: Iterable[str] = tuple(SUBJECTS)
    rounds: int = 3


@dataclass(frozen=True)
class Loopback:
    """Process of the provider."""

    address: str

    async def counts(self) -> dict[str, int]:
        """Return the requests since the last look, and the bytes of their bodies."""

        def read() -> dict[str, int]:
            with urllib.request.urlopen(f"{self.address}/counts", timeout=10) as answer:
                counts: dict[str, int] = json.load(answer)
                return counts

        return await asyncio.to_thread(read)


@asynccontextmanager
async def loopback() -> AsyncGenerator[Loopback]:
    """Run the provider, whose CPU is not measured."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proofs.benchmarks.provider"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert started.stdin is not None
    assert started.stdout is not None
    try:
        port = json.loads(await started.stdout.readline())["port"]
        yield Loopback(f"http://127.0.0.1:{port}")
    finally:
        started.stdin.close()
        await started.wait()


async def wire(venvs: Path, subjects: list[str], plan: Plan) -> AsyncIterator[Record]:
    """Measure a run at a time, the subjects in turns."""
    dead: dict[tuple[str, str], tuple[int, str]] = {}
    for turn in range(1, plan.rounds + 1):
        for api in plan.apis:
            # Peers need less precision.
            chosen = [name for name in SUBJECTS[api] if name in subjects and (turn == 1 or name in OURS)]
            if not chosen:
                continue
            async with loopback() as provider, bench(venvs) as on:
                real = Real(api, provider.address)
                async with side_by_side(on, chosen, real=real) as all_running:
                    for steps in plan.steps:
                        for running in all_running:
                            case = {"api": api, "steps": steps}
                            key = api, running.subject
                            least, why = dead.get(key, (steps + 1, ""))
                            # A subject that failed is not tried with longer runs: each takes minutes to fail.
                            if steps > least:
                                yield Record(
                                    suite="wire", subject=running.subject, case=case, round=turn, error=why
                                )
                                continue
                            measuring = _measure(on, provider, running, steps)
                            record = await measure_record("wire", running.subject, case, measuring, turn)
                            if record.error:
                                dead[key] = steps, f"as with {steps} steps: {record.error}"
                            yield record


async def _measure(on: Bench, provider: Loopback, running: Running, steps: int) -> dict[str, float]:
    await provider.counts()
    job = Job(id=on.id(running.subject), steps=steps, size=SIZE)
    values = await on.measure(running, job, within=60 + steps * 0.5)
    counts = await provider.counts()
    # The scripted model answers within the worker.
    if counts["requests"] not in (0, steps + 1):
        raise Failed(f"the provider got {counts['requests']} requests for {steps} steps")
    kept = ("wall_ms", "worker_cpu_ms", "worker_peak_mb", "bytes")
    sent = {"sent_bytes": counts["bytes"] / steps} if counts["requests"] else {}
    return {key: values[key] for key in kept} | sent
