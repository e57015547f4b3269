"""Data converter: pydantic JSON for every value, the blob store for payloads too large for history."""

import asyncio
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    ExternalStorage,
    FailureConverter,
    PayloadCodec,
    PayloadConverter,
    SerializationContext,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverSelectContext,
    StorageDriverStoreContext,
    WithSerializationContext,
)
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from perdure.blobs import BlobStore
from perdure.wire.names import BLOB_STORE_FAILED, FOR_ANY_CLIENT, WORKFLOWS
from perdure.wire.plain import Undecodable
from perdure.wire.spec import ResolvedAgent

from ..activities.content.blobs import CACHE_BYTES, BlobCache, with_retries

DRIVER_NAME: Final = "perdure-blobs"
"""Name in each reference to a stored payload, and so in histories: it must never change."""


MOST_INLINE_BYTES: Final = 1_500_000
"""Size up to which a payload for any client stays out of the blob store. Temporal's limit is 2 MiB a payload."""
_SMALLEST_MARKED: Final = 1024
"""Smallest threshold of the blob store: see `Settings.blob_threshold_bytes`."""
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


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
        return list(await asyncio.gather(*(self._retrieve(claim) for claim in claims)))

    async def _retrieve(self, claim: StorageDriverClaim) -> Payload:
        name = claim.claim_data.get("sha256", "")
        # No store has ever given such a name, so no store will have the blob one day: what decodes the payload
        # says so. A blob that is missing may come back, and history alone must decide what a run sees.
        if not _BLOB_NAME.fullmatch(name):
            return Payload(metadata={"encoding": b"perdure/no-blob"}, data=name.encode())
        return Payload.FromString(await self._get(name))

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
        if len(data) >= _SMALLEST_MARKED and getattr(value.__class__, "for_any_client", False):
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


def _reason(error: BaseException) -> str:
    """Return why a payload cannot be decoded, without its content."""
    if isinstance(error, ValidationError):
        return "; ".join(str(problem["msg"]) for problem in error.errors(include_input=False)[:3])
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


class _RunsConverter(CompositePayloadConverter):
    """Payload converter that reads `Undecodable` in place of what a run of ours cannot decode.

    The SDK decodes arguments before the workflow runs. An error there fails every workflow task, and a cancellation
    never reaches the run. Each run has a converter of its own, which `UndecodableArguments` tells whose it is. All
    others raise as ever: of users' own workflows, of clients and of activities.
    """

    _is_of_our_run = False

    def to_payloads(self, values: Sequence[Any]) -> list[Payload]:
        if len(values) == 1 and values[0] is _OUR_RUN:
            self._is_of_our_run = True
            return []
        return super().to_payloads(values)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        # With a type, the caller catches the error itself: see `perdure.workflows.payloads`.
        if type_hints or not self._is_of_our_run:
            return super().from_payloads(payloads, type_hints)
        return [self._decode(payload) for payload in payloads]

    def _decode(self, payload: Payload) -> Any:
        try:
            return super().from_payloads([payload])[0]
        except Exception as error:  # whatever a converter raises
            return Undecodable(reason=_reason(error))


_OUR_RUN: Final = object()


class UndecodableArguments(Interceptor):
    """Interceptor by which the converter of a run learns that the run is ours."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        """Mark the converter of each run of ours, before its arguments are decoded."""
        return _MarkedRun


class _MarkedRun(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        if outbound.info().workflow_type in WORKFLOWS:
            # The SDK wraps converters: the mark goes the way of a value.
            workflow.payload_converter().to_payloads([_OUR_RUN])
        super().init(outbound)


class PerdurePayloadConverter(_RunsConverter, PydanticPayloadConverter):
    """`PydanticPayloadConverter` that is cheap to construct, and fails no workflow task over an argument."""

    _DEFAULTS: ClassVar = {
        converter.encoding.encode(): converter
        for converter in DefaultPayloadConverter.default_encoding_payload_converters
    }

    def __init__(self) -> None:
        self.converters = {**self._DEFAULTS, b"json/plain": _Json()}


class _Details(PayloadConverter):
    """Payload converter for the details of failures: text in place of what cannot be decoded."""

    def __init__(self, converter: PayloadConverter) -> None:
        self._converter = converter

    def to_payloads(self, values: Sequence[Any]) -> list[Payload]:
        return self._converter.to_payloads(values)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        return [self._decode(payload) for payload in payloads]

    def _decode(self, payload: Payload) -> Any:
        try:
            return self._converter.from_payloads([payload])[0]
        except Exception as error:
            return f"(cannot be decoded: {_reason(error)})"


@lru_cache
def tolerant(converter: type[FailureConverter]) -> type[FailureConverter]:
    """Return the failure converter, made to read any failure.

    A failure of an activity comes from any worker in any language, with its last heartbeat. The SDK decodes it
    while it applies it: details that cannot be decoded would fail every workflow task of the run.
    """
    if getattr(converter, "reads_any_failure", False):
        return converter

    class Tolerant(converter):  # type: ignore[valid-type, misc]
        reads_any_failure: ClassVar = True

        def from_failure(self, failure: Failure, payload_converter: PayloadConverter) -> BaseException:
            try:
                read: BaseException = super().from_failure(  # pyright: ignore[reportAbstractUsage]
                    failure, _Details(payload_converter)
                )
                return read
            except Exception as error:  # such as a category that this SDK does not know
                return ApplicationError(f"{failure.message} (the failure cannot be read: {_reason(error)})")

    Tolerant.__name__ = Tolerant.__qualname__ = converter.__name__
    return Tolerant


@lru_cache
def _for_runs(converter: type[PayloadConverter]) -> type[PayloadConverter]:
    """Return the user's payload converter, made to fail no workflow task over an argument."""
    if issubclass(converter, _RunsConverter) or not issubclass(converter, CompositePayloadConverter):
        return converter
    return type(converter.__name__, (_RunsConverter, converter), {"__module__": converter.__module__})


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
    Both converters are made to read what cannot be decoded as an error that a run can catch.
    """
    base = existing or DataConverter.default
    is_default = base.payload_converter_class in (DefaultPayloadConverter, PydanticPayloadConverter)
    base = replace(
        base,
        payload_converter_class=PerdurePayloadConverter
        if is_default
        else _for_runs(base.payload_converter_class),
        failure_converter_class=tolerant(base.failure_converter_class),
    )
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
