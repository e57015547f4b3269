"""A server that goes away: callers and workers wait for it, and say so."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from perdure import connect
from perdure.starter.client.connect import Client
from perdure.workers.dev.server import DevServer, free_port
from tests.conftest import HANGS, until

_AGENT = """
from perdure import Agent
from perdure.testing import ScriptedModel, says
MODELS = {"scripted": ScriptedModel(lambda request: says("It is back."))}
models = MODELS
clerk = Agent(name="clerk", model="scripted:x")
"""


@contextmanager
def _worker(folder: Path, address: str, health: int) -> Generator[tuple["subprocess.Popen[bytes]", Path]]:
    (folder / "clerk.py").write_text(_AGENT)
    log = folder / "worker.log"
    environment = {**os.environ, "PERDURE_HOME": str(folder / "home"), "PERDURE_METRICS": "off"}
    words = ["clerk.py", "--address", address, "--health", f"127.0.0.1:{health}"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "perdure.workers", *words],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def _answers(port: int, path: str) -> int:
    try:
        with closing(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


async def _until_says(log: Path, words: str) -> None:
    async def says() -> bool:
        return words in await asyncio.to_thread(log.read_text)

    await until(says)


async def _probe(port: int, path: str) -> int:
    return await asyncio.to_thread(_answers, port, path)


async def test_worker_waits_for_server(tmp_path: Path) -> None:
    """A worker that is started first says that it waits, is alive and not ready, and then serves."""
    port, health = free_port(), free_port()
    with _worker(tmp_path, f"127.0.0.1:{port}", health) as (process, log):
        await _until_says(log, "waiting for the server: no Temporal server answers")
        assert await _probe(health, "/live") == 200
        assert await _probe(health, "/ready") == 503
        async with DevServer.start(db=None, port=port, ui_port=False) as server:
            await _until_says(log, "ready: clerk")
            client = await connect(server.address)
            assert (await client.run("clerk", "Where is it?")).output == "It is back."
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, HANGS) == 0


async def test_waiting_worker_ends_on_signal(tmp_path: Path) -> None:
    """A worker that waits for its server ends at once, and as asked."""
    with _worker(tmp_path, f"127.0.0.1:{free_port()}", free_port()) as (process, log):
        await _until_says(log, "waiting for the server")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, HANGS) == 0


async def test_callers_ride_out_restart(tmp_path: Path) -> None:
    """Start, result, status and list calls made before and during an outage get their answers after it."""
    port, db = free_port(), tmp_path / "temporal.db"
    with _worker(tmp_path, f"127.0.0.1:{port}", free_port()) as (_, log):
        async with DevServer.start(db, port=port, ui_port=False) as server:
            client = await connect(server.address)
            await _until_says(log, "ready: clerk")
            paused = await client.start("clerk", "Wait.", id="paused")
            with suppress(Exception):
                await paused.pause()
        calls = [
            asyncio.create_task(call) for call in (_result(client, "paused"), _start(client), _list(client))
        ]
        # The SDK itself gives up after ten seconds.
        done, _ = await asyncio.wait(calls, timeout=12)
        assert not done, [task.exception() for task in done]
        async with DevServer.start(db, port=port, ui_port=False):
            await client.get("paused").resume()
            answers = await asyncio.wait_for(asyncio.gather(*calls), HANGS)
    assert answers == ["It is back.", "It is back.", True]


async def _result(client: Client, run_id: str) -> object:
    return (await client.get(run_id).result()).output


async def _start(client: Client) -> object:
    run = await client.start("clerk", "Again.", id="second")
    return (await run.result()).output


async def _list(client: Client) -> bool:
    return [info.id async for info in client.list()] != []
