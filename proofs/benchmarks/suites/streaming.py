"""A long answer to many watchers: how late its words arrive, and what that costs."""

from collections.abc import AsyncIterator
from pathlib import Path

from ..bench import OURS, Bench, Record, Running, bench, cpu_seconds, quantile, recorded
from ..kit import Job

WATCHERS = (0, 1, 20, 100)
WORDS = 2000
RATE = 200.0


async def streaming(venvs: Path, subjects: list[str]) -> AsyncIterator[Record]:
    """2,000 words, 200 a second: to nobody, 1, 20 and 100 watchers, all of them in one process."""
    for subject in (one for one in subjects if one != "floor"):
        for watchers in WATCHERS:
            if not watchers and subject not in OURS:
                continue
            case = {"watchers": watchers, "words": WORDS}
            async with bench(venvs) as on, on.running(subject) as running:
                yield await recorded("streaming", subject, case, _measured(on, running, watchers))


async def _measured(on: Bench, running: Running, watchers: int) -> dict[str, float]:
    job = Job(id=on.id(running.subject), steps=1, size=100, tokens=WORDS, rate=RATE)
    pids = (running.worker.pid, running.driver.pid, on.server.pid)
    before = [cpu_seconds(pid) for pid in pids]
    answer = await running.driver.ask("watch", [job], 300, watchers=watchers)
    seconds = WORDS / RATE
    worker, driver, server = (
        (cpu_seconds(pid) - was) / seconds * 1000 for pid, was in zip(pids, before, strict=True)
    )
    values = {"worker_cpu_ms": worker, "driver_cpu_ms": driver, "server_cpu_ms": server}
    if running.names.workflow:
        found = await on.seen(running, job)
        values |= {"history_bytes": found.bytes, "events": found.events}
    if watchers:
        lags: list[float] = answer["lags"]
        values |= {
            "lag_p50_ms": quantile(lags, 0.5) * 1000,
            "lag_p95_ms": quantile(lags, 0.95) * 1000,
            "heard_share": sum(answer["heard"]) / (watchers * WORDS),
        }
    return values
