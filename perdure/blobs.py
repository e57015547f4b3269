"""The interface to a blob store, which keeps what is too large for a workflow's history.

Perdure ships a folder and an S3 bucket as stores. `docs/blob_stores.md` shows how to write and use your own,
and `perdure.testing.check_blob_store` tests it.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class BlobStore(Protocol):
    """Content-addressed bytes, shared by every worker and client that reads or writes a run.

    The name of a blob is the SHA-256 of its bytes, in lower-case hex. Both methods are called concurrently,
    from an event loop that they must not block. An implementation retries what may pass: a `put` that fails
    while an activity completes makes Temporal repeat the activity, and with it the activity's side effect.

    Blobs must outlive the histories that name them. Perdure deletes none.
    """

    async def put(self, data: bytes) -> str:
        """Store the bytes, and return their name; the bytes are durable once this returns.

        Idempotent: storing the same bytes again, also at the same time, gives the same name.

        Raises:
            Exception: the store takes nothing. The run is parked as `storage`, or the call fails.

        """
        ...

    async def get(self, name: str) -> bytes:
        """Return the bytes of that name.

        Raises:
            KeyError: there is no such blob, or this is no name of one; the message says where it was sought.
            Exception: the blob cannot be read now, or its bytes are damaged. They are never returned then.

        """
        ...
