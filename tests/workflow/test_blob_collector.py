"""Collection of blobs: what any run or schedule still needs stays, in each store and behind a codec; the rest goes."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleSpec,
    ScheduleState,
)
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.worker import Worker

from perdure import Agent, DefinitionError, Document, PerdurePlugin, tool
from perdure import Client as Perdure
from perdure.activities.content.blobs import FileBlobs, S3Blobs
from perdure.blobs import DatedBlobStore
from perdure.model import ModelRequest
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, calls, says
from perdure.workers.collector import Collector
from perdure.workers.dev.server import DevServer
from perdure.workers.observe.lifecycle import find_rules, what_is_taken
from tests.conftest import HANGS, until

LONG = "a long text " * 8000
PICTURE = os.urandom(40_000)


class Encrypts(PayloadCodec):
    """Stands for encryption: other bytes each time, and nothing readable in them."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        # The first bit is set, because one key in 256 would leave the text as it is.
        return [self._encode(payload, bytes([os.urandom(1)[0] | 128])) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [Payload.FromString(_scramble(p.data[1:], p.data[0])) for p in payloads]

    def _encode(self, payload: Payload, key: bytes) -> Payload:
        data = _scramble(payload.SerializeToString(), key[0])
        return Payload(metadata={"encoding": b"binary/encrypted"}, data=key + data)


def _scramble(data: bytes, key: int) -> bytes:
    return data.translate(bytes(byte ^ key ^ 99 for byte in range(256)))


@dataclass
class Place:
    """A store, as a new process opens it, and the means to make all its blobs old."""

    open: Callable[[], DatedBlobStore]
    make_old: Callable[[], None]


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    def make_old() -> None:
        date = time.time() - 40 * 86_400
        for path in (tmp_path / "blobs").rglob("*"):
            os.utime(path, (date, date))

    return Place(lambda: FileBlobs(tmp_path / "blobs", cache_bytes=0), make_old)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Generator[Place]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session: Any = boto3.session.Session(region_name="us-east-1")
    client = session.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="collected")

    def make_old() -> None:
        stored: Any = s3_backends["123456789012"]["aws"].buckets["collected"].keys
        for key in stored.values():
            key.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=40)

    yield Place(
        lambda: S3Blobs("collected", "x", f"http://{host}:{port}", "us-east-1", cache_bytes=0), make_old
    )
    client.close()
    server.stop()


@pytest.fixture
async def address() -> AsyncGenerator[str]:
    """A server of its own: what other tests left in theirs names blobs of other stores."""
    few_events = {"limit.historyCount.suggestContinueAsNew": "20"}
    async with DevServer.start(ui_port=False, dynamic_config=few_events) as server:
        yield server.address


@tool
async def records() -> str:
    """Give all records."""
    return LONG


@tool
async def picture() -> Document:
    """Give a picture."""
    return Document(media_type="application/pdf", data=base64.b64encode(PICTURE).decode())


def answer(request: ModelRequest) -> Any:
    """Call both tools in the first step of a run; later read the picture and the end of the records."""
    if request.step == 1:
        return [calls("records"), calls("picture")]
    seen = [bytes(data) for data in request.blobs.values()]
    return says(
        f"{len(request.messages)} messages, picture {'seen' if PICTURE in seen else 'not seen'}" + "." * 3000
    )


clerk = Agent(name="clerk", model="scripted:x", tools=[records, picture])


@pytest.mark.parametrize(("place", "codec"), [("folder", None), ("bucket", Encrypts())])
async def test_collector_keeps_what_is_needed(
    address: str, place: str, codec: PayloadCodec | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After a collection, old runs can be read and sessions go on; only what nothing names is gone."""
    store: Place = request.getfixturevalue(place)
    converter = replace(DataConverter.default, payload_codec=codec)
    settings = load_settings(address=address, home=tmp_path)
    models = {"scripted": ScriptedModel(answer)}

    async def connect() -> Client:
        plugin = PerdurePlugin([clerk], models=models, settings=settings, blobs=store.open())
        return await Client.connect(address, data_converter=converter, plugins=[plugin])

    first = await connect()
    async with asyncio.timeout(HANGS * 3):
        async with Worker(first, task_queue="perdure"):
            client = Perdure(first, task_queue="perdure")
            await client.run("clerk", LONG, id="ended")
            session = await client.session("desk", agent="clerk")
            for turn in range(3):
                await session.say(f"Question {turn}: " + "and so on " * 500)
        await first.create_schedule(
            "monthly",
            Schedule(
                action=ScheduleActionStartWorkflow(
                    "AgentWorkflow",
                    {"agent": "clerk", "prompt": LONG * 2},
                    id="monthly",
                    task_queue="perdure",
                ),
                spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(days=30))]),
                state=ScheduleState(paused=True),
            ),
        )
        never_named = await store.open().put(b"put, and never named" * 100)
        store.make_old()
        young = await store.open().put(b"named any moment now" * 100)

        dry = await Collector([await connect()], store.open()).collect(delete=False)
        assert (dry.deleted, dry.unreadable, dry.damaged, dry.schedules) == (0, [], [], 1)
        assert dry.garbage >= 1
        assert await store.open().get(never_named)
        if codec is not None:
            blind = await Collector([await Client.connect(address)], store.open()).collect(delete=True)
            assert blind.unreadable
            assert blind.deleted == 0
        done = await Collector([await connect()], store.open()).collect(delete=True)
        assert done.deleted == done.garbage == dry.garbage
        assert (await Collector([await connect()], store.open()).collect(delete=True)).garbage == 0
        with pytest.raises(KeyError):
            await store.open().get(never_named)
        assert await store.open().get(young)

        fresh = await connect()
        described = await fresh.get_schedule_handle("monthly").describe()
        action = described.schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        [argument] = await fresh.data_converter.decode(list(action.args))
        assert argument["prompt"] == LONG * 2
        async with Worker(fresh, task_queue="perdure"):
            client = Perdure(fresh, task_queue="perdure")
            ended = await client.get("ended").transcript()
            assert ended[0].text == LONG
            reply = await (await client.session("desk")).say("And today?")
            assert reply.stop_reason == "end_turn"
            assert "picture seen" in reply.text


async def test_lone_blobs_are_renewed_on_carry(address: str, tmp_path: Path, folder: Place) -> None:
    """A session that continues as new renews what its messages name, and chunks that it carries along."""
    settings = load_settings(address=address, home=tmp_path)
    plugin = PerdurePlugin(
        [clerk], models={"scripted": ScriptedModel(answer)}, settings=settings, blobs=folder.open()
    )
    client = await Client.connect(address, plugins=[plugin])
    async with asyncio.timeout(HANGS), Worker(client, task_queue="perdure"):
        session = await Perdure(client, task_queue="perdure").session("desk", agent="clerk")
        await session.say("Question")
        folder.make_old()
        lone = [blob.name async for blob in folder.open().list_blobs()]
        for turn in range(4):
            await session.say(f"Question {turn}")

        async def renewed() -> bool:
            yesterday = datetime.now(UTC) - timedelta(days=1)
            dates = {blob.name: blob.stored_at async for blob in folder.open().list_blobs()}
            pictures = [name for name in lone if await folder.open().get(name) == PICTURE]
            texts = [name for name in lone if LONG.encode() == await folder.open().get(name)]
            return all(dates[name] > yesterday for name in (*pictures, *texts)) and len(pictures + texts) == 2

        await until(renewed)


async def test_collector_refuses_what_is_unsafe(tmp_path: Path) -> None:
    """A store without dates and a grace of a day are refused in words."""

    class Plain:
        async def put(self, data: bytes) -> str:
            return ""

        async def get(self, name: str) -> bytes:
            return b""

    with pytest.raises(DefinitionError, match="no list_blobs, renew and delete"):
        Collector([], Plain())
    with pytest.raises(DefinitionError, match="too short"):
        Collector([], FileBlobs(tmp_path), grace=timedelta(days=1))


async def test_doctor_says_what_a_rule_takes(address: str, bucket: Place) -> None:
    """A rule is told by what it takes: nothing yet, or blobs of open runs and of retained histories."""
    store = bucket.open()
    assert isinstance(store, S3Blobs)
    temporal = await Client.connect(address)
    await temporal.start_workflow("AgentWorkflow", {"agent": "clerk"}, id="waits", task_queue="nobody")

    async def visible() -> bool:
        return bool([run async for run in temporal.list_workflows("ExecutionStatus = 'Running'")])

    await until(visible)
    assert await find_rules(store) == []
    for days, said in ((40, "will lose its blobs"), (1, "1 open runs began before that")):
        rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": days}}
        rules: Any = {"Rules": [rule]}
        store.s3.put_bucket_lifecycle_configuration(Bucket="collected", LifecycleConfiguration=rules)
        [found] = await find_rules(store)
        text = await what_is_taken(temporal, found)
        assert text.startswith(f"rule 'r' deletes blobs after {days} days")
        assert said in text
        assert ("histories of closed runs" in text) is (days == 1)
