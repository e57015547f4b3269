"""Blob stores: where what is too big for history goes, by the name of its content."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class BlobStore(Protocol):
    """Content-addressed bytes, shared by everyone who reads or writes a run.

    Implementations retry what can be retried: a failing `put` while an activity completes would
    repeat the activity's side effect.
    """

    async def put(self, data: bytes) -> str:
        """Keep the bytes, durably once this returns; gives their SHA-256 in hex. Idempotent."""
        ...

    async def get(self, name: str) -> bytes:
        """The bytes of that name.

        Raises:
            KeyError: there are none; the message says where it was looked for.

        """
        ...
