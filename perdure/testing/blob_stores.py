"""The contract of `perdure.BlobStore`, as checks that anyone can run against a store of their own.

Each check is an async function that takes a function which opens the store. The function is called several
times, and must give a new object on the same place each time, as different processes have it. So what only
one object remembers does not count as stored. A check stores blobs and leaves them there.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from perdure.blobs import BlobStore, DatedBlobStore

OpenStore = Callable[[], BlobStore]
BlobStoreCheck = Callable[[OpenStore], Awaitable[None]]

_LARGE_BYTES: Final = 8_000_000
_MALFORMED_NAMES: Final = ("", "0" * 63, "A" * 64, "0" * 64 + "\n", "../../etc/passwd", "/" + "0" * 63)


async def check_blob_store(open_store: OpenStore) -> None:
    """Run all checks, one after the other; those of `DatedBlobStore` too, if the store is one.

    Raises:
        AssertionError: the store breaks the contract; the message says how.
        Exception: the store's own error, where the contract wants none.

    """
    dated = DATED_BLOB_STORE_CHECKS if isinstance(open_store(), DatedBlobStore) else ()
    for check in (*BLOB_STORE_CHECKS, *dated):
        await check(open_store)


async def check_content_comes_back(open_store: OpenStore) -> None:
    """Check that another object on the same place returns what was stored, byte by byte."""
    for data in (b"plain", bytes(range(256)), os.urandom(1000)):
        name = await open_store().put(data)
        _expect(name == _name(data), f"put() returned {name!r}, not the SHA-256 {_name(data)!r}")
        _expect(await open_store().get(name) == data, f"get() returned other bytes than {data[:40]!r}...")


async def check_empty_blob(open_store: OpenStore) -> None:
    """Check that no bytes are a blob too."""
    name = await open_store().put(b"")
    _expect(name == _name(b""), f"put(b'') returned {name!r}")
    _expect(await open_store().get(name) == b"", "the empty blob did not come back")


async def check_large_blob(open_store: OpenStore) -> None:
    """Check a blob of eight million bytes."""
    data = os.urandom(_LARGE_BYTES)
    name = await open_store().put(data)
    _expect(await open_store().get(name) == data, "a large blob came back changed")


async def check_put_is_idempotent(open_store: OpenStore) -> None:
    """Check that storing the same bytes again gives the same name, and leaves them readable."""
    data = os.urandom(100)
    store = open_store()
    names = [await store.put(data), await store.put(data), await open_store().put(data)]
    _expect(len(set(names)) == 1, f"the same bytes got different names: {sorted(set(names))}")
    _expect(await open_store().get(names[0]) == data, "the second put() damaged the blob")


async def check_unknown_name(open_store: OpenStore) -> None:
    """Check that a name without a blob is a `KeyError`, and that a later `put` makes it readable."""
    data = os.urandom(100)
    store = open_store()
    # Asked first: a store that remembers the miss would not see what another process stores.
    await _expect_key_error(store, _name(data))
    await open_store().put(data)
    _expect(await store.get(_name(data)) == data, "a blob stored after a miss was not found")


async def check_malformed_names(open_store: OpenStore) -> None:
    """Check that what is no SHA-256 in lower-case hex is a `KeyError`: a name must not become a path."""
    for name in _MALFORMED_NAMES:
        await _expect_key_error(open_store(), name)


async def check_concurrent_puts(open_store: OpenStore) -> None:
    """Check many writers at once, of one blob and of many."""
    shared, stores = os.urandom(50_000), [open_store() for _ in range(4)]
    own = [os.urandom(1_000) for _ in range(16)]
    blobs = [shared] * 16 + own
    names = await asyncio.gather(*(stores[i % 4].put(data) for i, data in enumerate(blobs)))
    _expect(names == _names(blobs), "writers at the same time got wrong names")
    read = await asyncio.gather(*(stores[-1 - i % 4].get(name) for i, name in enumerate(names)))
    _expect(list(read) == blobs, "writers at the same time damaged each other's blobs")


async def check_list_has_every_blob(open_store: OpenStore) -> None:
    """Check that the list has what was stored, with its size and the time at which it was stored."""
    blobs = [os.urandom(size) for size in (0, 10, 5000)]
    began = datetime.now(UTC)
    names = [await open_store().put(data) for data in blobs]
    listed = {blob.name: blob async for blob in _dated(open_store).list_blobs()}
    for name, data in zip(names, blobs, strict=True):
        _expect(name in listed, f"list_blobs() has no {name}, which was stored")
        found = listed[name]
        _expect(found.size_bytes == len(data), f"the list says {found.size_bytes} bytes, not {len(data)}")
        # An empty blob may be there from before. Clocks of stores may differ a little.
        late = abs(found.stored_at - began) if data else timedelta()
        _expect(late < timedelta(minutes=5), f"the list says {found.stored_at}; it was stored at {began}")


async def check_young_blob_stays(open_store: OpenStore) -> None:
    """Check that a blob that is younger than the date is not deleted."""
    data = os.urandom(100)
    name = await open_store().put(data)
    deleted = await _dated(open_store).delete(name, before=datetime.now(UTC) - timedelta(hours=1))
    _expect(not deleted, "delete() says that it deleted a blob younger than `before`")
    _expect(await open_store().get(name) == data, "delete() damaged a blob younger than `before`")


async def check_old_blob_is_deleted(open_store: OpenStore) -> None:
    """Check that a blob that is older than the date is deleted, once, and can be stored again."""
    data = os.urandom(100)
    name = await open_store().put(data)
    later = datetime.now(UTC) + timedelta(hours=1)
    _expect(await _dated(open_store).delete(name, before=later), "delete() deleted nothing")
    await _expect_key_error(open_store(), name)
    _expect(not await _dated(open_store).delete(name, before=later), "delete() deleted a blob twice")
    await open_store().put(data)
    _expect(await open_store().get(name) == data, "a blob stored after its deletion did not come back")


async def check_renew_needs_a_blob(open_store: OpenStore) -> None:
    """Check that renewing keeps a blob as it is, and that renewing none is a `KeyError`."""
    data = os.urandom(100)
    name = await open_store().put(data)
    await _dated(open_store).renew(name)
    _expect(await open_store().get(name) == data, "renew() changed the blob")
    try:
        await _dated(open_store).renew(_name(os.urandom(10)))
    except KeyError:
        return
    raise AssertionError("renew() of a blob that is not there raised no KeyError")


BLOB_STORE_CHECKS: Final[tuple[BlobStoreCheck, ...]] = (
    check_content_comes_back,
    check_empty_blob,
    check_large_blob,
    check_put_is_idempotent,
    check_unknown_name,
    check_malformed_names,
    check_concurrent_puts,
)
"""Every check of the contract, to parametrize a test with."""

DATED_BLOB_STORE_CHECKS: Final[tuple[BlobStoreCheck, ...]] = (
    check_list_has_every_blob,
    check_young_blob_stays,
    check_old_blob_is_deleted,
    check_renew_needs_a_blob,
)
"""Every further check of `DatedBlobStore`."""


def _dated(open_store: OpenStore) -> DatedBlobStore:
    store = open_store()
    _expect(isinstance(store, DatedBlobStore), f"{store!r} has no list_blobs, renew and delete")
    assert isinstance(store, DatedBlobStore)
    return store


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _names(blobs: Iterable[bytes]) -> list[str]:
    return [_name(data) for data in blobs]


def _expect(holds: bool, problem: str) -> None:
    # Not an assert statement: pytest does not rewrite those of an installed package, and `-O` drops them.
    if not holds:
        raise AssertionError(problem)


async def _expect_key_error(store: BlobStore, name: str) -> None:
    try:
        await store.get(name)
    except KeyError:
        return
    except Exception as error:
        raise AssertionError(f"get({name!r}) raised {type(error).__name__}, not KeyError") from error
    raise AssertionError(f"get({name!r}) returned bytes; there is no such blob")
