"""A user's payload codec covers all that is kept in the blob store, and who has the codec reads all of it."""

import asyncio
import base64
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.worker import Worker

from perdure import Agent, DefinitionError, Document, PerdurePlugin, connect, tool
from perdure import Client as Perdure
from perdure.activities.content.blobs import FileBlobs
from perdure.activities.content.coded_blobs import CodedBlobs
from perdure.model import ModelRequest
from perdure.settings import Settings, load_settings
from perdure.testing import ScriptedModel, calls, says
from perdure.workers.connection import configured_codec
from tests.conftest import HANGS
from tests.workflow.test_blob_collector import Encrypts

SECRET = "patient 7 is well. "
LONG = SECRET * 3000


@tool
async def records() -> str:
    """Give all records."""
    return LONG


@tool
async def scan() -> Document:
    """Give a scan."""
    return Document(media_type="application/pdf", data=base64.b64encode(LONG.encode()).decode())


def answer(request: ModelRequest) -> Any:
    """Call the tools, read the records' end, and answer with what was seen."""
    match request.step:
        case 1:
            return [calls("records"), calls("scan")]
        case 2:
            [result] = [part for part in request.messages[-1].tool_results if part.spilled]
            return calls("read_result", result=result.spilled, offset=len(LONG) - 10)
        case _:
            scanned = LONG.encode() in request.blobs.values()
            return says(f"{request.messages[-1].text!r} {scanned}")


@pytest.mark.parametrize("by", ["client", "settings"])
async def test_codec_covers_every_blob(
    settings: Settings, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, results and documents are encoded in the store; workers and other clients with the codec read them."""
    module = ModuleType("our_codec")
    monkeypatch.setattr(module, "codec", Encrypts, raising=False)
    monkeypatch.setitem(sys.modules, "our_codec", module)
    agent = Agent(name="doctor", model="scripted:x", tools=[records, scan])
    converter = DataConverter.default
    if by == "client":
        converter = replace(converter, payload_codec=Encrypts())
    else:
        settings = settings.model_copy(update={"payload_codec": "our_codec:codec"})
        monkeypatch.setenv("PERDURE_PAYLOAD_CODEC", "our_codec:codec")
        monkeypatch.setenv("PERDURE_HOME", str(tmp_path))

    async def client() -> Client:
        plugin = PerdurePlugin([agent], models={"scripted": ScriptedModel(answer)}, settings=settings)
        return await Client.connect(settings.address, data_converter=converter, plugins=[plugin])

    async with asyncio.timeout(HANGS), Worker(await client(), task_queue=settings.task_queue):
        run_id = f"coded-{settings.task_queue}"
        result = await Perdure(await client(), task_queue=settings.task_queue).run("doctor", LONG, id=run_id)
        other = Perdure(await client(), task_queue=settings.task_queue)
        if by == "settings":
            other = await connect(settings.address, task_queue=settings.task_queue)
        messages = await other.get(run_id).transcript()
    assert result.output == f"{LONG[-10:]!r} True"
    assert messages[0].text == LONG
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(files) == 2  # the prompt; and the records, of which the scan has the same content
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


async def test_same_content_is_the_same_blob(tmp_path: Path) -> None:
    """A codec that gives other bytes each time does not fill the store with copies."""
    blobs = CodedBlobs(FileBlobs(tmp_path), Encrypts())
    names = {await blobs.put(LONG.encode()) for _ in range(5)}
    assert len(names) == 1
    assert await CodedBlobs(FileBlobs(tmp_path), Encrypts()).get(names.pop()) == LONG.encode()


async def test_blobs_from_before_the_codec_stay_readable(tmp_path: Path) -> None:
    """Who begins to encrypt reads what is there; who has no codec is told what is missing."""
    plain = await CodedBlobs(FileBlobs(tmp_path)).put(b"from before")
    coded = CodedBlobs(FileBlobs(tmp_path), Encrypts())
    assert await coded.get(plain) == b"from before"
    name = await coded.put(b"from after")
    with pytest.raises(ValueError, match="give this process the payload codec"):
        await CodedBlobs(FileBlobs(tmp_path)).get(name)


class NoCodec(PayloadCodec):
    """A codec that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no key")

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:f", "ModuleNotFoundError"),
        ("json:nothing", "AttributeError"),
        ("builtins:list", "is no temporalio.converter.PayloadCodec"),
        (f"{__name__}:NoCodec", "RuntimeError: no key"),
    ],
)
def test_wrong_codec_is_refused(name: str, problem: str) -> None:
    with pytest.raises(DefinitionError, match=f"payload codec '{name}': .*{problem}"):
        configured_codec(load_settings(payload_codec=name))
