"""Large payloads through a real server, and what becomes of a user's own converter."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    DefaultPayloadConverter,
    ExternalStorage,
    PayloadCodec,
    StorageDriverRetrieveContext,
    StorageDriverStoreContext,
)
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from perdure.activities.content.blobs import FileBlobs
from perdure.workers.converter import (
    BlobDriver,
    MarkKeepingCodec,
    PerdurePayloadConverter,
    data_converter,
    extend_converter,
)
from perdure.workers.dev.server import DevServer

THRESHOLD = 32 * 1024


class Counting:
    """A blob store that counts, and fails as often as it is told to."""

    def __init__(self, root: Path, failures: int = 0) -> None:
        self.inner = FileBlobs(root, cache_bytes=0)
        self.failures = failures
        self.puts = 0
        self.gets = 0

    async def put(self, data: bytes) -> str:
        self.puts += 1
        self._fail()
        return await self.inner.put(data)

    async def get(self, name: str) -> bytes:
        self.gets += 1
        self._fail()
        return await self.inner.get(name)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the store is away")


class Big(BaseModel):
    text: str


@activity.defn
async def enlarge(size: int) -> Big:
    ENLARGED.append(size)
    return Big(text="x" * size)


ENLARGED: list[int] = []


@workflow.defn
class Enlarges:
    def __init__(self) -> None:
        self.big = Big(text="")

    @workflow.run
    async def run(self, given: Big) -> Big:
        self.big = await workflow.execute_activity(
            enlarge, len(given.text), start_to_close_timeout=timedelta(seconds=20)
        )
        await workflow.sleep(0.001)
        await workflow.sleep(0.001)
        return self.big


@pytest.fixture
async def address() -> AsyncGenerator[str]:
    async with DevServer.start(ui_port=False) as server:
        yield server.address


async def _run(client: Client, given: Big) -> Big:
    async with Worker(
        client,
        task_queue="big",
        workflows=[Enlarges],
        activities=[enlarge],
        max_cached_workflows=0,
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        return await client.execute_workflow(Enlarges.run, given, id="big", task_queue="big")


async def test_large_payloads_keep_history_small(address: str, tmp_path: Path) -> None:
    store = Counting(tmp_path)
    client = await Client.connect(address, data_converter=data_converter(store, THRESHOLD))
    given = Big(text="y" * 3_000_000)
    result = await _run(client, given)
    assert len(result.text) == 3_000_000
    history = await client.get_workflow_handle("big").fetch_history()
    assert sum(event.ByteSize() for event in history.events) < 10_000
    # Each of input and result is stored, and is then known: replays at every task read nothing.
    assert store.gets == 0
    assert 2 <= store.puts <= 3


async def test_each_payload_is_read_once(address: str, tmp_path: Path) -> None:
    starter = await Client.connect(
        address, data_converter=data_converter(FileBlobs(tmp_path / "blobs"), THRESHOLD)
    )
    handle = await starter.start_workflow(Enlarges.run, Big(text="z" * 300_000), id="big", task_queue="big")
    store = Counting(tmp_path / "blobs")
    client = await Client.connect(address, data_converter=data_converter(store, THRESHOLD))
    async with Worker(
        client,
        task_queue="big",
        workflows=[Enlarges],
        activities=[enlarge],
        max_cached_workflows=0,
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        assert len((await handle.result()).text) == 300_000
    assert store.gets == 1


async def test_store_outage_repeats_no_activity(address: str, tmp_path: Path) -> None:
    ENLARGED.clear()
    store = Counting(tmp_path)
    client = await Client.connect(address, data_converter=data_converter(store, THRESHOLD))
    async with Worker(
        client,
        task_queue="big",
        workflows=[Enlarges],
        activities=[enlarge],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        given = Big(text="w" * 40_000)
        handle = await client.start_workflow(Enlarges.run, given, id="big", task_queue="big")
        store.failures = 2
        await handle.result()
    assert store.failures == 0
    assert ENLARGED == [40_000]


async def test_claims_name_digest_of_payload(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    driver = BlobDriver(store)
    payloads = [Payload(data=os.urandom(size)) for size in (10, 100_000, 10)]
    claims = await driver.store(StorageDriverStoreContext(target=None), payloads)
    assert driver.name() == "perdure-blobs"
    blobs = await asyncio.gather(*(store.get(claim.claim_data["sha256"]) for claim in claims))
    assert [Payload.FromString(blob) for blob in blobs] == payloads
    fresh = BlobDriver(FileBlobs(tmp_path))
    assert await fresh.retrieve(StorageDriverRetrieveContext(), claims) == payloads


class Reverses(PayloadCodec):
    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [
            Payload(metadata={"encoding": b"reversed"}, data=p.SerializeToString()[::-1]) for p in payloads
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [Payload.FromString(p.data[::-1]) for p in payloads]


class Theirs(DefaultPayloadConverter):
    pass


def test_user_codec_and_converter_are_kept(tmp_path: Path) -> None:
    theirs = DataConverter(
        payload_codec=Reverses(), failure_converter_class=DefaultFailureConverterWithEncodedAttributes
    )
    ours = extend_converter(theirs, FileBlobs(tmp_path), THRESHOLD)
    assert ours.payload_converter_class is PerdurePayloadConverter
    assert isinstance(ours.payload_codec, MarkKeepingCodec)
    assert ours.payload_codec.codec is theirs.payload_codec
    assert extend_converter(ours, FileBlobs(tmp_path), THRESHOLD).payload_codec is ours.payload_codec
    assert issubclass(ours.failure_converter_class, DefaultFailureConverterWithEncodedAttributes)
    assert ours.external_storage is not None
    assert ours.external_storage.payload_size_threshold == THRESHOLD


def test_user_payload_converter_is_kept() -> None:
    theirs = DataConverter(payload_converter_class=Theirs)
    assert issubclass(extend_converter(theirs, None, THRESHOLD).payload_converter_class, Theirs)
    assert extend_converter(None, None, THRESHOLD).payload_converter_class is PerdurePayloadConverter


async def test_user_storage_still_stores(tmp_path: Path) -> None:
    class Named(BlobDriver):
        def name(self) -> str:
            return "theirs"

    their_driver = Named(FileBlobs(tmp_path / "theirs"))
    theirs = replace(
        data_converter(None, THRESHOLD),
        external_storage=ExternalStorage(drivers=[their_driver], payload_size_threshold=1000),
    )
    both = extend_converter(theirs, FileBlobs(tmp_path / "ours"), THRESHOLD)
    (stored,) = await both.encode(["v" * 5000])
    assert (tmp_path / "theirs").exists()
    assert not (tmp_path / "ours").exists()
    assert await both.decode([stored]) == ["v" * 5000]
    ours = data_converter(FileBlobs(tmp_path / "ours"), 1000)
    assert await both.decode(await ours.encode(["u" * 5000])) == ["u" * 5000]


def _only_file(folder: Path) -> bytes:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file.read_bytes()


async def test_codec_runs_before_store(tmp_path: Path) -> None:
    converter = extend_converter(DataConverter(payload_codec=Reverses()), FileBlobs(tmp_path), 1000)
    encoded = await converter.encode(["secret " * 1000])
    assert b"secret" not in _only_file(tmp_path)
    assert await converter.decode(encoded) == ["secret " * 1000]
