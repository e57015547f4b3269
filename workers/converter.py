"""Data converter: pydantic JSON for every value, the blob store for payloads too large for history."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
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
    PayloadCodec,
    SerializationContext,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverSelectContext,
    StorageDriverStoreContext,
    WithSerializationContext,
)
from temporalio.exceptions import ApplicationError

from perdure.blobs import BlobStore
from perdure.wire.names import BLOB_STORE_FAILED, FOR_ANY_CLIENT
from perdure.wire.spec import ResolvedAgent

from ..activities.content.blobs import CACHE_BYTES, BlobCache, with_retries

DRIVER_NAME: Final = "perdure-blobs"
"""Name in each reference to a stored payload, and so in histories: it must never change."""


MOST_INLINE_BYTES: Final = 1_500_000
"""Size up to which a payload for any client stays out of the blob store. Temporal's limit is 2 MiB a payload."""
_SMALLEST_MARKED: Final = 1024
"""Smallest threshold of the blob store: see `Settings.blob_threshold_bytes`."""


class BlobDriver(StorageDriver):
    """Storage driver that keeps payloads as blobs, named by the digest of their serialized bytes.

    It retries by itself: if `store` failed while an activity completes, Temporal would repeat the activity
    and its side effect. It caches recent blobs, so that a replay does not fetch what this process has just
    stored or read.
    """

    def __init__(self, store: BlobStore, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._recent = BlobCache(cache_bytes)

    def name(self) -> str:
        """Return the driver's name in references."""
        return DRIVER_NAME

    def type(self) -> str:
        """Return the kind of the driver."""
        return "perdure.blobs"

    async def store(
        self, context: StorageDriverStoreContext, payloads: Sequence[Payload]
    ) -> list[StorageDriverClaim]:
        """Store the payloads durably; return a claim for each, in order."""
        return list(await asyncio.gather(*(self._put(payload.SerializeToString()) for payload in payloads)))

    async def retrieve(
        self, context: StorageDriverRetrieveContext, claims: Sequence[StorageDriverClaim]
    ) -> list[Payload]:
        """Return the payloads of the claims, in order."""
        blobs = await asyncio.gather(*(self._get(claim.claim_data["sha256"]) for claim in claims))
        return [Payload.FromString(blob) for blob in blobs]

    async def _put(self, data: bytes) -> StorageDriverClaim:
        try:
            name = await with_retries(lambda: self._store.put(data))
        except Exception as error:
            # Temporal must not retry: the activity with this result has had its effect.
            raise ApplicationError(
                f"the blob store does not accept blobs: {error}", type=BLOB_STORE_FAILED, non_retryable=True
            ) from None
        self._recent.keep(name, data)
        return StorageDriverClaim(claim_data={"sha256": name, "bytes": str(len(data))})

    async def _get(self, name: str) -> bytes:
        data = self._recent.get(name)
        if data is None:
            data = await with_retries(lambda: self._store.get(name))
            self._recent.keep(name, data)
        return data


@dataclass(frozen=True)
class InlineSelector:
    """Selector of the driver: none for a payload that clients without Perdure read, up to a size."""

    driver: BlobDriver

    def __call__(self, _context: StorageDriverSelectContext, payload: Payload) -> StorageDriver | None:
        """Return the driver, or None to leave the payload in history."""
        if FOR_ANY_CLIENT not in payload.metadata or payload.ByteSize() > MOST_INLINE_BYTES:
            return self.driver
        return None


class MarkKeepingCodec(PayloadCodec, WithSerializationContext):
    """The user's codec, which leaves the mark of a payload for any client readable on what it encodes."""

    def __init__(self, codec: PayloadCodec) -> None:
        self.codec = codec

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encode the payloads."""
        encoded = await self.codec.encode(payloads)
        if len(encoded) == len(payloads):  # a codec may join payloads
            for before, after in zip(payloads, encoded, strict=True):
                if FOR_ANY_CLIENT in before.metadata:
                    after.metadata[FOR_ANY_CLIENT] = before.metadata[FOR_ANY_CLIENT]
        return encoded

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decode the payloads."""
        return await self.codec.decode(payloads)

    def with_context(self, context: SerializationContext) -> "MarkKeepingCodec":
        """Return the codec for that context; the same one if the user's has no use for it."""
        if not isinstance(self.codec, WithSerializationContext):
            return self
        bound = self.codec.with_context(context)
        return self if bound is self.codec else MarkKeepingCodec(bound)


class _Json(EncodingPayloadConverter):
    """Converter between values and JSON, by pydantic.

    The SDK constructs a converter several times for each task, so construction does nothing. A model
    validates itself, without the cost of an adapter.
    """

    @property
    def encoding(self) -> str:
        return "json/plain"

    @cached_property
    def _adapter(self) -> Callable[[Any], "TypeAdapter[Any]"]:
        # A cache of this converter, not of the module: types that a sandboxed run imported must not
        # outlive the run.
        return lru_cache(maxsize=1024)(TypeAdapter)

    def to_payload(self, value: Any) -> Payload | None:
        data = to_json(value)
        metadata = {"encoding": b"json/plain"}
        # A smaller payload stays in history anyway, and needs no mark.
        if len(data) >= _SMALLEST_MARKED and getattr(type(value), "for_any_client", False):
            metadata[FOR_ANY_CLIENT] = b"true"
        return Payload(metadata=metadata, data=data)

    def from_payload(self, payload: Payload, type_hint: Any = None) -> Any:
        if type_hint is ResolvedAgent:
            return _parse_resolved(payload.data)
        if isinstance(type_hint, type) and issubclass(type_hint, BaseModel):
            return type_hint.model_validate_json(payload.data)
        return self._adapter_of(Any if type_hint is None else type_hint).validate_json(payload.data)

    def _adapter_of(self, hint: Any) -> "TypeAdapter[Any]":
        return self._adapter(hint) if isinstance(hint, Hashable) else TypeAdapter(hint)


@lru_cache(maxsize=256)
def _parse_resolved(data: bytes) -> ResolvedAgent:
    """Parse a resolved agent; runs with the same specs share an object, which never changes."""
    return ResolvedAgent.model_validate_json(data)


class PerdurePayloadConverter(PydanticPayloadConverter):
    """`PydanticPayloadConverter` that is cheap to construct."""

    _DEFAULTS: ClassVar = {
        converter.encoding.encode(): converter
        for converter in DefaultPayloadConverter.default_encoding_payload_converters
    }

    def __init__(self) -> None:
        self.converters = {**self._DEFAULTS, b"json/plain": _Json()}


def data_converter(
    store: BlobStore | None,
    threshold: int,
    *,
    cache_bytes: int = CACHE_BYTES,
    codec: PayloadCodec | None = None,
) -> DataConverter:
    """Return a converter that stores payloads of `threshold` bytes and more; without a store, none."""
    return extend_converter(with_codec(None, codec), store, threshold, cache_bytes=cache_bytes)


def with_codec(existing: DataConverter | None, codec: PayloadCodec | None) -> DataConverter:
    """Return the converter with that codec, if there is one and the converter has none of its own."""
    base = existing or DataConverter.default
    return replace(base, payload_codec=codec) if codec and base.payload_codec is None else base


def extend_converter(
    existing: DataConverter | None, store: BlobStore | None, threshold: int, *, cache_bytes: int = CACHE_BYTES
) -> DataConverter:
    """Return the user's converter, extended by pydantic JSON and the blob store.

    The user's codec and failure converter are kept. Only a default payload converter is replaced: it reads
    dataclasses 20 times slower. A user's own storage still stores what it selects; ours then only reads.
    """
    base = existing or DataConverter.default
    if base.payload_converter_class in (DefaultPayloadConverter, PydanticPayloadConverter):
        base = replace(base, payload_converter_class=PerdurePayloadConverter)
    if store is None:
        return base
    if base.payload_codec is not None and not isinstance(base.payload_codec, MarkKeepingCodec):
        base = replace(base, payload_codec=MarkKeepingCodec(base.payload_codec))
    ours = BlobDriver(store, cache_bytes=cache_bytes)
    return replace(base, external_storage=_combine(base.external_storage, ours, threshold))


def _combine(theirs: ExternalStorage | None, ours: BlobDriver, threshold: int) -> ExternalStorage:
    if theirs is None:
        return ExternalStorage(
            drivers=[ours], driver_selector=InlineSelector(ours), payload_size_threshold=threshold
        )
    if any(driver.name() == DRIVER_NAME for driver in theirs.drivers):
        return theirs
    first = theirs.drivers[0]

    # The SDK requires a selector when there is more than one driver.
    def select_first(_context: StorageDriverSelectContext, _payload: Payload) -> StorageDriver | None:
        return first

    selector = theirs.driver_selector or select_first
    return replace(theirs, drivers=[*theirs.drivers, ours], driver_selector=selector)
