"""Results and media in the blob store, encoded by the user's payload codec.

Payloads pass the codec before they are stored, because Temporal's SDK does that. What activities store themselves (long
results, pictures, documents) passes it here. The name is that of the encoded bytes: a name made of the content would
tell whoever reads the store which blobs are equal to a text that they know.
"""

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from perdure.blobs import BlobStore

from .blob_cache import CACHE_BYTES, BlobCache, blob_name

_ENCODED = b"perdure/encoded/1\n"
"""First bytes of an encoded blob. What was stored before there was a codec has none of them, and stays readable."""


class CodedBlobs:
    """Blob store that encodes what it keeps, if there is a codec; the worker sets it."""

    def __init__(self, store: BlobStore, codec: PayloadCodec | None = None) -> None:
        self.store = store
        self.codec = codec
        # Encryption gives other bytes each time. Content that this process stores again is to be the same blob.
        self._encoded = BlobCache(CACHE_BYTES)

    async def put(self, data: bytes) -> str:
        """Store the content, encoded: see `BlobStore`."""
        return await self.store.put(await self._encode(data))

    async def get(self, name: str) -> bytes:
        """Return the content: see `BlobStore`.

        Raises:
            ValueError: it is encoded, and there is no codec here.

        """
        data = await self.store.get(name)
        if not data.startswith(_ENCODED):
            return data
        if self.codec is None:
            raise ValueError(f"blob {name} is encoded: give this process the payload codec that wrote it")
        [payload] = await self.codec.decode([Payload.FromString(data.removeprefix(_ENCODED))])
        return payload.data

    async def _encode(self, data: bytes) -> bytes:
        if self.codec is None:
            return data
        known = self._encoded.get(digest := blob_name(data))
        if known is None:
            [payload] = await self.codec.encode([Payload(metadata={"encoding": b"binary/plain"}, data=data)])
            known = _ENCODED + payload.SerializeToString()
            self._encoded.keep(digest, known)
        return known
