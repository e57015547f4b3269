"""The interface to a blob store, which keeps what is too large for a workflow's history.

Perdure ships a folder and an S3 bucket as stores. `docs/blob_stores.md` shows how to write and use your own,
and `perdure.testing.check_blob_store` tests it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol, runtime_checkable

RENEW_AFTER: Final = timedelta(days=1)
"""Age from which a blob that is stored again, or renewed, gets a new date.

Short beside any lifetime, so that a blob in use is never near its end. Long enough that a blob costs at most one
write a day, however often it is stored.
"""


class DamagedBlobError(OSError):
    """Error of a store that has other bytes under a blob's name than its content."""


@runtime_checkable
class BlobStore(Protocol):
    """Content-addressed bytes, shared by every worker and client that reads or writes a run.

    The name of a blob is the SHA-256 of its bytes, in lower-case hex. Both methods are called concurrently,
    from an event loop that they must not block. An implementation retries what may pass: a `put` that fails
    while an activity completes makes Temporal repeat the activity, and with it the activity's side effect.

    Blobs must outlive the histories that name them. Only `perdure blobs gc` deletes any: see `DatedBlobStore`.
    """

    async def put(self, data: bytes) -> str:
        """Store the bytes, and return their name; the bytes are durable once this returns.

        Idempotent: storing the same bytes again, also at the same time, gives the same name. It repairs a blob
        that is damaged.

        Raises:
            Exception: the store takes nothing. The run is parked as `storage`, or the call fails.

        """
        ...

    async def get(self, name: str) -> bytes:
        """Return the bytes of that name.

        Raises:
            KeyError: there is no such blob, or this is no name of one; the message says where it was sought.
            DamagedBlobError: the bytes under that name are others. They are never returned.
            Exception: the blob cannot be read now.

        """
        ...


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """Entry of a store's list."""

    name: str
    size_bytes: int
    stored_at: datetime
    """Time at which the blob was stored or renewed, with its zone."""


@runtime_checkable
class DatedBlobStore(BlobStore, Protocol):
    """Blob store whose blobs have dates, so that `perdure blobs gc` can delete what nothing names any more.

    `put` of bytes that are stored already renews the blob. Without that, a blob could be deleted while a run that
    has just stored it again needs it.
    """

    def list_blobs(self) -> AsyncIterator[StoredBlob]:
        """Yield every blob of the store, in any order; one that is stored meanwhile may be missing."""
        ...

    async def renew(self, name: str) -> None:
        """Give the blob the present date, if its date is older than `RENEW_AFTER`.

        Raises:
            KeyError: there is no such blob.

        """
        ...

    async def delete(self, name: str, *, before: datetime) -> bool:
        """Delete the blob if its date is earlier than `before`; return whether this call deleted it.

        The date is read again here: a blob that was stored since it was listed must stay.
        """
        ...
