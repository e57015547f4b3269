"""A bank that is not Perdure's, for tests that kill its worker: a remote tool, and the activity behind it.

`python -m tests.process.bank` is the bank's own worker, which knows nothing of Perdure.
"""

import asyncio
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from perdure import Agent, RemoteTool, ToolRetry
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, says

from .crew import LEDGER, note

QUEUE = f"{os.environ.get('PERDURE_TASK_QUEUE', 'nobody')}-bank"


@activity.defn(name="charge_remotely")
async def charge_remotely(_: dict[str, Any], about: dict[str, Any]) -> str:
    """Charge, unless the key shows that it has been done; the first attempt then waits for leave."""
    key, attempt = about["idempotency_key"], about["earlier_attempts"] + activity.info().attempt
    with closing(sqlite3.connect(LEDGER, timeout=30)) as db, db:
        done = db.execute(
            "insert into effects values (?, ?, ?) on conflict do nothing", (key, "bank", "charge")
        )
    note("bank", key, str(attempt))
    async with asyncio.timeout(300):
        while attempt == 1 and not LEDGER.with_suffix(".go").exists():
            activity.heartbeat()
            await asyncio.sleep(0.2)
    return "done" if done.rowcount else "had been done already"


def _charge_once(request: ModelRequest) -> Any:
    last = request.messages[-1]
    return says(last.text) if last.role == "tool" else calls("charge_remotely")


payer = Agent(
    name="payer",
    model="scripted:x",
    tools=[
        RemoteTool(
            name="charge_remotely",
            description="Charge.",
            task_queue=QUEUE,
            effect="write",
            input_schema={"type": "object", "properties": {}},
            heartbeat=timedelta(seconds=1),
            retry=ToolRetry(attempts=3, initial_interval=timedelta(milliseconds=50)),
        )
    ],
)
agents = [payer]
models = {"scripted": ScriptedModel(_charge_once)}


async def serve() -> None:
    """Serve the bank's activity, until the process is killed."""
    client = await Client.connect(os.environ["PERDURE_ADDRESS"])
    async with Worker(client, task_queue=QUEUE, activities=[charge_remotely]):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
