"""Worker of this subject."""

import asyncio
import os
import sys

from pydantic_ai.durable_exec.temporal import PydanticAIPlugin
from temporalio.client import Client
from temporalio.worker import Worker

from proofs.chaos.subjects import QUEUE

from .workflow import ChaosTask


async def _main() -> None:
    client = await Client.connect(os.environ["CHAOS_TEMPORAL"], plugins=[PydanticAIPlugin()])
    async with Worker(client, task_queue=QUEUE, workflows=[ChaosTask]):
        print("ready", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
