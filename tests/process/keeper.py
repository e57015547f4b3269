"""A clerk whose blobs a slow store keeps, for a worker that is killed while it renews them."""

import asyncio
import os
from pathlib import Path
from typing import Any

from perdure import Agent, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, says

from .crew import LEDGER, note

RECORDS = "a long record " * 3000


class SlowBlobs(FileBlobs):
    """Folder whose first renewal takes five minutes."""

    async def renew(self, name: str) -> None:
        has_begun = LEDGER.with_suffix(".renewing")
        note("renew", "", name)
        if not has_begun.exists():
            has_begun.touch()
            await asyncio.sleep(300)
        await super().renew(name)


def open_blobs() -> SlowBlobs:
    """Open the store of the worker."""
    return SlowBlobs(Path(os.environ["PERDURE_HOME"]) / "blobs", cache_bytes=0)


@tool
async def records() -> str:
    """Give all records."""
    return RECORDS


def _read_once(request: ModelRequest) -> Any:
    has_read = any(message.role == "tool" for message in request.messages)
    return says("I have read them.") if has_read else calls("records")


clerk = Agent(name="clerk", model="scripted:x", tools=[records], result_preview_bytes=1024)
models = {"scripted": ScriptedModel(_read_once)}
