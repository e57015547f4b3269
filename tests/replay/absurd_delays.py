"""Records runs whose histories hold delays of centuries: `python -m tests.replay.absurd_delays`.

Nothing of ours writes such delays any more, so the recording puts them there. `recorded_wait`: the failure of a model
call, with a wait of 9,500 years. `carried_wait`: a state that continue-as-new has carried, of a run that would try
again in the year 9999.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from perdure import Agent
from perdure.errors import ModelError
from perdure.messages import Text, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply
from perdure.settings import load_settings
from perdure.starter.client.connect import Client
from perdure.workers.dev.server import DevServer
from perdure.workflows.engine.carry import pack
from tests.conftest import until_status
from tests.serving import running

from .record import HISTORIES, keep

ENDLESS = timedelta(seconds=3 * 10**11)
_LAST_DAY = "9999-12-30T00:00:00Z"


class Busy:
    """Provider that is busy at first."""

    def __init__(self) -> None:
        self.calls = 0

    def check(self, config: ModelConfig) -> None:
        """Take any config."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Refuse the first call, and answer the others."""
        self.calls += 1
        if self.calls == 1:
            raise ModelError("rate_limited", "busy", retry_after=timedelta(seconds=0.2))
        yield Reply(
            parts=(Text(text="Aisle 4."),), stop="end_turn", usage=Usage(input_tokens=1, output_tokens=1)
        )


def _pack(*arguments: Any) -> list[Any]:
    carried, *chunks = pack(*arguments)
    parked = carried["state"]["parking"]["parked"]
    if parked is not None:
        parked["resumes_at"] = _LAST_DAY
    return [carried, *chunks]


async def _play(name: str, folder: Path, *, events: int) -> None:
    config = {"limit.historyCount.suggestContinueAsNew": str(events)}
    with TemporaryDirectory() as home:
        async with DevServer.start(db=None, ui_port=False, dynamic_config=config) as server:
            settings = load_settings(home=Path(home), address=server.address)
            agent = Agent(name=name, model="busy:x")
            async with running(
                [agent], models={"busy": Busy()}, address=server.address, settings=settings
            ) as client:
                await _run(client, name)
                await keep(client, name, folder)


async def _run(client: Client, name: str) -> None:
    run = await client.start(name, "Where is the tea?", id=f"replay-{name}")
    await until_status(client, run.id, "parked")
    if name == "carried_wait":
        await run.send("Are you there?")  # an event, with which it continues as new
    assert (await run.result()).output == "Aisle 4."


async def record() -> None:
    """Record both, with waits of seconds in place of minutes. Each failure parks the run at once."""
    folder = HISTORIES / "absurd_delays"
    folder.mkdir(parents=True, exist_ok=True)
    second = timedelta(seconds=1)
    with (
        patch("perdure.workflows.engine.parking.LONGEST_WAIT", 2 * second),
        patch("perdure.activities.attempt.LONGEST_RETRY_AFTER", timedelta()),
    ):
        with patch("perdure.activities.attempt._auto_retry_delay", return_value=ENDLESS):
            await _play("recorded_wait", folder, events=1000)
        with (
            patch("perdure.workflows.loop.pack", _pack),
            patch("perdure.activities.attempt._auto_retry_delay", return_value=7 * second),
        ):
            await _play("carried_wait", folder, events=8)
    (folder / "carried_wait-1.json").unlink()  # only its end is of interest


if __name__ == "__main__":
    asyncio.run(record())
