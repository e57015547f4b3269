"""The data converter: pydantic for every value, the blob store for what is too big for history."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import (
    DataConverter,
    DefaultPayloadConverter,
    ExternalStorage,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverSelectContext,
    StorageDriverStoreContext,
)
from temporalio.exceptions import ApplicationError

from perdure.blobs import BlobStore
from perdure.effects import BLOB_STORE_FAILED

from ..activities.blobs import CACHE_BYTES, Recent, retried

DRIVER_NAME: Final = "perdure-blobs"
"""Stands in histories, in each reference to a stored payload: never change it."""


class BlobDriver(StorageDriver):
    """Payloads as blobs, by the digest of their serialized bytes.

    Retries inside, whatever the store does: a failing `store` while an activity completes would
    repeat the activity's side effect. Keeps what it saw last, so that a replay fetches nothing
    that this process has stored or read a moment ago.
    """

    def __init__(self, store: BlobStore, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._recent = Recent(cache_bytes)

    def name(self) -> str:
        """See `StorageDriver`."""
        return DRIVER_NAME

    def type(self) -> str:
        """See `StorageDriver`."""
        return "perdure.blobs"

    async def store(
        self, context: StorageDriverStoreContext, payloads: Sequence[Payload]
    ) -> list[StorageDriverClaim]:
        """Durable once this returns; one claim for each payload."""
        return list(await asyncio.gather(*(self._put(payload.SerializeToString()) for payload in payloads)))

    async def retrieve(
        self, context: StorageDriverRetrieveContext, claims: Sequence[StorageDriverClaim]
    ) -> list[Payload]:
        """The payloads of those claims, in order."""
        blobs = await asyncio.gather(*(self._get(claim.claim_data["sha256"]) for claim in claims))
        return [Payload.FromString(blob) for blob in blobs]

    async def _put(self, data: bytes) -> StorageDriverClaim:
        try:
            name = await retried(lambda: self._store.put(data))
        except Exception as error:
            # Not to be retried by Temporal: the activity whose result this is has had its effect.
            raise ApplicationError(
                f"the blob store takes nothing: {error}", type=BLOB_STORE_FAILED, non_retryable=True
            ) from None
        self._recent.keep(name, data)
        return StorageDriverClaim(claim_data={"sha256": name, "bytes": str(len(data))})

    async def _get(self, name: str) -> bytes:
        data = self._recent.get(name)
        if data is None:
            data = await retried(lambda: self._store.get(name))
            self._recent.keep(name, data)
        return data


def data_converter(store: BlobStore | None, threshold: int) -> DataConverter:
    """Pydantic JSON, and payloads of `threshold` bytes and more in the store (None: all inline)."""
    return over(pydantic_data_converter, store, threshold)


def over(existing: DataConverter | None, store: BlobStore | None, threshold: int) -> DataConverter:
    """The user's converter with what we need: their codec and failure converter are kept.

    Replaced is only the default payload converter, which reads dataclasses 20 times slower.
    A storage of theirs stays in charge of what it would take; ours is then there for reading.
    """
    base = existing or pydantic_data_converter
    if base.payload_converter_class is DefaultPayloadConverter:
        base = replace(base, payload_converter_class=PydanticPayloadConverter)
    if store is None:
        return base
    return replace(base, external_storage=_beside(base.external_storage, BlobDriver(store), threshold))


def _beside(theirs: ExternalStorage | None, ours: BlobDriver, threshold: int) -> ExternalStorage:
    if theirs is None:
        return ExternalStorage(drivers=[ours], payload_size_threshold=threshold)
    if any(driver.name() == DRIVER_NAME for driver in theirs.drivers):
        return theirs
    first = theirs.drivers[0]

    def pick(_context: StorageDriverSelectContext, _payload: Payload) -> StorageDriver | None:
        return first

    return replace(theirs, drivers=[*theirs.drivers, ours], driver_selector=theirs.driver_selector or pick)
