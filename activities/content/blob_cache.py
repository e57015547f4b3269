"""Shared parts of the blob stores: names, the check of content, retries, and a cache of recent blobs."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from cachetools import LRUCache

from perdure.blobs import RENEW_AFTER, DamagedBlobError

T = TypeVar("T")

CACHE_BYTES: Final = 32 * 1024 * 1024
THREADS: Final = 16
_RETRY_DELAYS: Final = (0.05, 0.2, 0.8)
"""Seconds before the first, second and third retry."""
NAME: Final = re.compile(r"[0-9a-f]{64}")
"""Form of a blob's name. Checked before each use, because a name can come from a model's text."""


class BlobCache:
    """Cache of the blobs used last, bounded by their bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self._blobs: LRUCache[str, bytes] = LRUCache(capacity_bytes, getsizeof=len)

    def get(self, name: str) -> bytes | None:
        """Return the blob's bytes, or None if they are not in the cache."""
        return self._blobs.get(name)

    def keep(self, name: str, data: bytes) -> None:
        """Add the blob; a blob that alone exceeds the bound is not kept."""
        # The cache refuses a value larger than itself with an exception.
        if len(data) <= self._blobs.maxsize:
            self._blobs[name] = data


async def with_retries(
    effect: Callable[[], Awaitable[T]], *, on: type[Exception] | tuple[type[Exception], ...] = Exception
) -> T:
    """Return the effect's value, retried up to three times within about a second.

    `KeyError` is an answer ("no such blob") and not a failure: it is never retried.
    """
    for delay in _RETRY_DELAYS:
        try:
            return await effect()
        except KeyError:
            raise
        except on:
            await asyncio.sleep(delay)
    return await effect()


def blob_name(data: bytes) -> str:
    """Return the name of the blob with these bytes."""
    return hashlib.sha256(data).hexdigest()


def check_name(name: str) -> str:
    """Return the name if it has the form of one.

    Raises:
        KeyError: it does not.

    """
    if not NAME.fullmatch(name):
        raise KeyError(f"{name!r} is not the name of a blob")
    return name


def verify(name: str, data: bytes, where: object) -> bytes:
    """Return the bytes if they are those of the blob.

    Raises:
        DamagedBlobError: they are not; the message says which blob, where, and what to do.

    """
    if blob_name(data) != name:
        raise DamagedBlobError(
            f"blob {name} is damaged in {where}: {len(data)} bytes that are not its content. Restore it from a "
            "backup, or store the same content again: that repairs it"
        )
    return data


def is_due(stored_at: datetime) -> bool:
    """Check whether a blob of that date is to get a new one: see `RENEW_AFTER`."""
    return datetime.now(UTC) - stored_at > RENEW_AFTER
