"""Worker of this subject."""

import asyncio
import os
import sys

from strands.models.openai import OpenAIModel
from temporalio.client import Client
from temporalio.strands_agents import StrandsPlugin
from temporalio.worker import Worker

from proofs.chaos.subjects import QUEUE

from .tools import TOOLS
from .workflow import ChaosTask


def _model() -> OpenAIModel:
    return OpenAIModel(client_args={"max_retries": 0}, model_id="scripted")


async def _main() -> None:
    plugin = StrandsPlugin(models={"scripted": _model})
    client = await Client.connect(os.environ["CHAOS_TEMPORAL"], plugins=[plugin])
    async with Worker(client, task_queue=QUEUE, workflows=[ChaosTask], activities=list(TOOLS.values())):
        print("ready", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
