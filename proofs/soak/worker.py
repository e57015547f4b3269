"""Worker process that also samples itself: a line of JSON for each line that it reads.

python -m proofs.soak.worker proofs.soak.agents
"""

import asyncio
import json
import sys

from perdure.settings import load_settings
from perdure.workers.worker import WorkerArgs, run_process, run_worker

from .samples import sample_self


async def _answer_samples() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(sample_self()), flush=True)


async def _main() -> None:
    answering = asyncio.create_task(_answer_samples())
    try:
        await run_worker(WorkerArgs(files=sys.argv[1:], settings=load_settings()))
    finally:
        answering.cancel()


if __name__ == "__main__":
    run_process(_main)
