"""The data converter: pydantic for every value, the blob store for what is too big for history."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Final

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import (
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    ExternalStorage,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverSelectContext,
    StorageDriverStoreContext,
)
from temporalio.exceptions import ApplicationError

from perdure.blobs import BlobStore
from perdure.wire.names import BLOB_STORE_FAILED
from perdure.wire.spec import ResolvedAgent

from ..activities.content.blobs import CACHE_BYTES, BlobCache, with_retries

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
        self._recent = BlobCache(cache_bytes)

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
            name = await with_retries(lambda: self._store.put(data))
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
            data = await with_retries(lambda: self._store.get(name))
            self._recent.keep(name, data)
        return data


class _Json(EncodingPayloadConverter):
    """JSON as pydantic reads and writes it. The SDK makes a converter several times for each task, so making
    one does nothing; and a model reads itself, without an adapter made for it first.
    """

    @property
    def encoding(self) -> str:
        return "json/plain"

    @cached_property
    def _adapter(self) -> Callable[[Any], "TypeAdapter[Any]"]:
        # Of this converter only: what a sandboxed workflow imports must not outlive it.
        return lru_cache(maxsize=1024)(TypeAdapter)

    def to_payload(self, value: Any) -> Payload | None:
        return Payload(metadata={"encoding": b"json/plain"}, data=to_json(value))

    def from_payload(self, payload: Payload, type_hint: Any = None) -> Any:
        if type_hint is ResolvedAgent:
            return _resolved(payload.data)
        if isinstance(type_hint, type) and issubclass(type_hint, BaseModel):
            return type_hint.model_validate_json(payload.data)
        return self._adapter_of(Any if type_hint is None else type_hint).validate_json(payload.data)

    def _adapter_of(self, hint: Any) -> "TypeAdapter[Any]":
        return self._adapter(hint) if isinstance(hint, Hashable) else TypeAdapter(hint)


@lru_cache(maxsize=256)
def _resolved(data: bytes) -> ResolvedAgent:
    """Specs never change, and thousands of runs have the same: one object for all of them."""
    return ResolvedAgent.model_validate_json(data)


class PerdurePayloadConverter(PydanticPayloadConverter):
    """What `PydanticPayloadConverter` does, and cheap to make."""

    _OTHERS: ClassVar = {
        one.encoding.encode(): one for one in DefaultPayloadConverter.default_encoding_payload_converters
    }

    def __init__(self) -> None:
        self.converters = {**self._OTHERS, b"json/plain": _Json()}


def data_converter(
    store: BlobStore | None, threshold: int, *, cache_bytes: int = CACHE_BYTES
) -> DataConverter:
    """Pydantic JSON, and payloads of `threshold` bytes and more in the store (None: all inline)."""
    return extend_converter(None, store, threshold, cache_bytes=cache_bytes)


def extend_converter(
    existing: DataConverter | None, store: BlobStore | None, threshold: int, *, cache_bytes: int = CACHE_BYTES
) -> DataConverter:
    """The user's converter with what we need: their codec and failure converter are kept.

    Replaced is only the default payload converter, which reads dataclasses 20 times slower.
    A storage of theirs stays in charge of what it would take; ours is then there for reading.
    """
    base = existing or DataConverter.default
    if base.payload_converter_class in (DefaultPayloadConverter, PydanticPayloadConverter):
        base = replace(base, payload_converter_class=PerdurePayloadConverter)
    if store is None:
        return base
    ours = BlobDriver(store, cache_bytes=cache_bytes)
    return replace(base, external_storage=_beside(base.external_storage, ours, threshold))


def _beside(theirs: ExternalStorage | None, ours: BlobDriver, threshold: int) -> ExternalStorage:
    if theirs is None:
        return ExternalStorage(drivers=[ours], payload_size_threshold=threshold)
    if any(driver.name() == DRIVER_NAME for driver in theirs.drivers):
        return theirs
    first = theirs.drivers[0]

    def pick(_context: StorageDriverSelectContext, _payload: Payload) -> StorageDriver | None:
        return first

    return replace(theirs, drivers=[*theirs.drivers, ours], driver_selector=theirs.driver_selector or pick)
