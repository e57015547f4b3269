"""Long answer to many watchers: the lag of its words, and the cost."""

from collections.abc import AsyncIterator
from pathlib import Path

from ..bench import OURS, Bench, Record, Running, bench, cpu_seconds, measure_record, quantile
from ..kit import Job

WATCHERS = (0, 1, 20, 100)
WORDS = 2000
RATE = 200.0


async def streaming(venvs: Path, subjects: list[str]) -> AsyncIterator[Record]:
    """Stream 2,000 words, 200 a second, to 0, 1, 20 and 100 watchers in the same process."""
    for subject in (name for name in subjects if name != "floor"):
        for watchers in WATCHERS:
            if not watchers and subject not in OURS:
                continue
            case = {"watchers": watchers, "words": WORDS}
            async with bench(venvs) as on, on.running(subject) as running:
                yield await measure_record("streaming", subject, case, _measure(on, running, watchers))


async def _measure(on: Bench, running: Running, watchers: int) -> dict[str, float]:
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
        found = await on.read_history(running, job)
        values |= {"history_bytes": found.bytes, "events": found.events}
    if watchers:
        lags: list[float] = answer["lags"]
        values |= {
            "lag_p50_ms": quantile(lags, 0.5) * 1000,
            "lag_p95_ms": quantile(lags, 0.95) * 1000,
            "heard_share": sum(answer["heard"]) / (watchers * WORDS),
        }
    return values
