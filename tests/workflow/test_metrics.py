"""Metrics of model calls: they say what the runs' results say, whatever became of each attempt."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, ModelError, RunFailed, RunResult, Usage
from perdure.activities import genai
from perdure.messages import Text
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply, TextDelta, UsageSoFar
from perdure.starter.client.connect import Client
from tests.conftest import HANGS, Gate, Serve, check_rows

FIRST, SECOND = "anthropic:claude-sonnet-5-5", "anthropic:claude-haiku-4-5"
USED = Usage(input_tokens=100_000, output_tokens=4000)
SOON = timedelta(milliseconds=20)


class Bills:
    """Provider that bills each attempt the same; the run's user says what becomes of it."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.gate = Gate()

    def check(self, config: ModelConfig) -> None: ...

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        row = str(request.user)
        self.attempts[row] += 1
        yield UsageSoFar(usage=USED)
        match row:
            case "cut" if self.attempts[row] < 4:
                raise ModelError("stream_cut", "the line was cut", retry_after=SOON)
            case "falls back" if request.config.name == FIRST:
                raise ModelError("not_found", "no such model any more")
            case "fails":
                raise ModelError("bad_request", "no")
            case "stopped":
                yield TextDelta(text="I think")
                await self.gate.wait()
            case _:
                pass
        yield Reply(parts=(Text(text="done"),), stop="end_turn", usage=USED)


async def test_metrics_say_what_results_say(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that were cut, that failed, that another model made good, and that were stopped: all are counted."""
    counted: dict[str, list[tuple[Usage, int]]] = {}
    record = genai.record_usage

    def count(labels: Any, agent: str, model: Any, usage: Usage, cost_microusd: int | None) -> None:
        counted.setdefault(agent, []).append((usage, cost_microusd or 0))
        record(labels, agent, model, usage, cost_microusd)

    monkeypatch.setattr(genai, "record_usage", count)
    provider = Bills()
    rows = {"answers": 1, "cut": 4, "falls back": 2, "fails": 1, "stopped": 1}

    def agent(row: str) -> Agent:
        fallbacks = [SECOND] if row == "falls back" else []
        return Agent(name=row.replace(" ", "_"), model=FIRST, fallbacks=fallbacks, on_failure="fail")

    async def result_of(client: Client, row: str) -> RunResult:
        run = await client.start(agent(row).name, "go", user=row)
        if row == "stopped":
            await provider.gate.reached.wait()
            await run.stop()
        if row != "fails":
            return await run.result()
        with pytest.raises(RunFailed) as failed:
            await run.result()
        assert failed.value.result is not None
        return failed.value.result

    async def play(client: Client, row: str) -> None:
        result = await result_of(client, row)
        measured = counted[agent(row).name]
        assert len(measured) == provider.attempts[row] == rows[row]
        assert sum(cost for _, cost in measured) == result.cost_microusd
        assert sum(usage.total_tokens for usage, _ in measured) == result.usage.total_tokens
        assert result.usage.total_tokens >= rows[row] * USED.input_tokens

    async with (
        serve(*map(agent, rows), models={"anthropic": provider}) as client,
        asyncio.timeout(HANGS),
    ):
        await check_rows({row: play(client, row) for row in rows})
