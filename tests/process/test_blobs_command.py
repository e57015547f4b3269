"""`perdure blobs gc` as an operator uses it: a dry run first, then the deletion, in processes of their own."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import RawValue

from perdure import connect
from perdure.activities.content.blobs import FileBlobs
from perdure.messages import Message
from perdure.settings import load_settings
from perdure.workers.dev.server import DevServer

from .shell import Shell

AGENTS = '''
from perdure import Agent, tool
from perdure.testing import ScriptedModel, calls, says


@tool
async def records() -> str:
    """Give all records."""
    return "a long record " * 9000


clerk = Agent(name="clerk", model="scripted:x", tools=[records])
models = {"scripted": ScriptedModel([calls("records"), says("read")])}
'''


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell with a server of its own: what other tests left in theirs names blobs of other stores."""
    with asyncio.Runner() as runner:
        starting = DevServer.start(db=None, ui_port=False)
        server = runner.run(starting.__aenter__())
        made = Shell(tmp_path, {"PERDURE_ADDRESS": server.address})
        try:
            yield made
        finally:
            made.close()
            runner.run(starting.__aexit__(None, None, None))


def _stored(folder: Path) -> set[str]:
    # The first two digits of a name are a folder.
    return {path.parent.name + path.name for path in folder.rglob("*") if path.is_file()}


def _make_old(folder: Path) -> None:
    date = time.time() - 40 * 86_400
    for path in folder.rglob("*"):
        os.utime(path, (date, date))


def test_dry_run_comes_before_deletion(shell: Shell) -> None:
    """Nothing goes without `--delete`; with it, what nothing names goes, and what a closed run names stays readable."""
    shell.write("desk.py", AGENTS)
    shell.start("worker", "desk.py").says("ready: clerk")
    run = shell.perdure("run", "clerk", "All records.", "--id", "kept")
    assert (run.code, run.out) == (0, "read\n"), run.err
    blobs = shell.folder / "home" / "blobs"
    needed = _stored(blobs)
    assert needed, "the records are too long for the history"

    async def put(data: bytes) -> str:
        return await FileBlobs(blobs).put(data)

    garbage = {asyncio.run(put(f"never named {number}".encode())) for number in range(3)}
    _make_old(blobs)
    young = asyncio.run(put(b"named any moment now"))
    everything = {*needed, *garbage, young}

    dry = shell.perdure("blobs", "gc")
    assert dry.code == 0, dry.err
    assert "3 that nothing names are older" in dry.out
    assert "nothing was deleted: this was a dry run; `perdure blobs gc --delete` deletes them" in dry.out
    counted = shell.perdure("blobs", "gc", "--json").json
    assert (counted["garbage"], counted["young"], counted["deleted"]) == (3, 1, 0)
    assert _stored(blobs) == everything

    short = shell.perdure("blobs", "gc", "--delete", "--grace-days", "1")
    assert short.code == 2
    assert "Traceback" not in short.err
    assert _stored(blobs) == everything

    swept = shell.perdure("blobs", "gc", "--delete")
    assert swept.code == 0, swept.err
    assert "3 deleted" in swept.out
    assert _stored(blobs) == everything - garbage
    assert shell.perdure("blobs", "gc", "--delete", "--json").json["garbage"] == 0

    async def transcript() -> list[Message]:
        settings = load_settings(address=shell.variables["PERDURE_ADDRESS"], home=shell.folder / "home")
        return await (await connect(settings=settings)).get("kept").transcript()

    texts = [message.text for message in asyncio.run(transcript())]
    assert any("a long record" in text for text in texts)
    assert {name for name in needed if (blobs / name[:2] / name[2:]).exists()} == needed


def test_unreadable_payload_stops_deletion(shell: Shell) -> None:
    """A payload that cannot be read may name any blob: nothing goes, and the exit code says so."""
    blobs = shell.folder / "home" / "blobs"

    async def start() -> str:
        client = await Client.connect(shell.variables["PERDURE_ADDRESS"])
        sealed = RawValue(Payload(metadata={"encoding": b"binary/encrypted"}, data=b"sealed"))
        await client.start_workflow("Sealed", args=[sealed], id="sealed", task_queue="nobody")
        return await FileBlobs(blobs).put(b"never named")

    asyncio.run(start())
    _make_old(blobs)
    before = _stored(blobs)
    refused = shell.perdure("blobs", "gc", "--delete")
    assert refused.code == 1
    assert "unreadable: " in refused.out
    assert "Set PERDURE_PAYLOAD_CODEC to the codec that wrote them" in refused.err
    assert _stored(blobs) == before
    ignored = shell.perdure("blobs", "gc", "--delete", "--ignore-type", "Sealed")
    assert ignored.code == 0, ignored.err
    assert "1 deleted" in ignored.out
