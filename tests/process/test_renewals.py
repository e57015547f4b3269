"""`kill -9` of a worker that renews the blobs of a session."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from perdure import NotReachable, Session, TurnReply, connect
from perdure.settings import Settings
from perdure.workers.dev.server import DevServer
from tests.conftest import HANGS, until

from . import crew
from .conftest import Crew
from .keeper import RECORDS

_DAY = 86_400.0


async def _say(session: Session, text: str) -> TurnReply:
    async with asyncio.timeout(HANGS):
        while True:
            try:
                return await session.say(text, id=text)
            except NotReachable:
                continue


def _make_old(folder: Path) -> None:
    date = time.time() - 40 * _DAY
    for path in folder.rglob("*"):
        os.utime(path, (date, date))


@pytest.mark.cold
async def test_renewal_outlives_its_worker(
    impatient: DevServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker renews what the killed one did not, and the session's turns wait for neither."""
    monkeypatch.setenv("PERDURE_BLOB_STORE", "python:tests.process.keeper:open_blobs")
    mine, ledger = settings.model_copy(update={"address": impatient.address}), tmp_path / "ledger.db"
    crew.prepare(ledger)
    program = ("perdure.workers", "tests.process.keeper")
    workers = Crew(settings=mine, ledger=ledger, log=tmp_path / "worker.log", program=program)
    workers.start()
    try:
        session = await (await connect(settings=mine)).session("keeps", agent="clerk", user="ann")
        await _say(session, "Read the records.")
        blobs = mine.home / "blobs"
        _make_old(blobs)
        [needed] = [
            path for path in blobs.rglob("*") if path.is_file() and path.read_bytes() == RECORDS.encode()
        ]
        for turn in range(20):
            if workers.happened("renew"):
                break
            await _say(session, f"And now? {turn}")

        async def is_renewing() -> bool:
            return bool(workers.happened("renew"))

        await until(is_renewing)
        workers.kill()
        workers.start()
        assert (await _say(session, "Go on.")).stop_reason == "end_turn"

        async def is_renewed() -> bool:
            return needed.stat().st_mtime > time.time() - _DAY

        await until(is_renewed)
        await session.close()
    finally:
        workers.end()
