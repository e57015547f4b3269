import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.activities.content.blobs import (
    BlobCache,
    FileBlobs,
    S3Blobs,
    blob_name,
    open_store,
    with_retries,
)
from perdure.blobs import BlobStore
from perdure.errors import DefinitionError


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_name_is_the_content_digest(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path / "blobs")
    assert isinstance(store, BlobStore)
    for data in (b"", b"hello", os.urandom(3_000_000)):
        name = await store.put(data)
        assert name == hashlib.sha256(data).hexdigest()
        assert await FileBlobs(tmp_path / "blobs").get(name) == data


async def test_put_twice_writes_once(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    await store.put(b"same")
    (file,) = _files(tmp_path)
    written = file.stat().st_mtime_ns
    await FileBlobs(tmp_path).put(b"same")
    assert _files(tmp_path) == [file]
    assert file.stat().st_mtime_ns == written


async def test_concurrent_writers_leave_one_file(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    stores = [FileBlobs(tmp_path) for _ in range(4)]
    names = await asyncio.gather(*(store.put(data) for store in stores for _ in range(8)))
    assert set(names) == {blob_name(data)}
    (file,) = _files(tmp_path)
    assert file.read_bytes() == data


async def test_incomplete_file_is_replaced(tmp_path: Path) -> None:
    name = await FileBlobs(tmp_path).put(b"whole content")
    (file,) = _files(tmp_path)
    file.write_bytes(b"whole")
    assert await FileBlobs(tmp_path).put(b"whole content") == name
    assert file.read_bytes() == b"whole content"


@pytest.mark.parametrize("damage", [b"", b"whole", b"\0" * 13, b"whole c0ntent", b"whole content and more"])
async def test_storing_again_repairs_a_blob(tmp_path: Path, damage: bytes) -> None:
    """A put of the same content makes a damaged file whole, whatever became of it."""
    name = await FileBlobs(tmp_path).put(b"whole content")
    (file,) = _files(tmp_path)
    file.write_bytes(damage)
    assert await FileBlobs(tmp_path).put(b"whole content") == name
    assert await FileBlobs(tmp_path).get(name) == b"whole content"


@pytest.mark.parametrize(("age", "renewed"), [(timedelta(hours=23), False), (timedelta(hours=25), True)])
@pytest.mark.parametrize("by", ["put", "renew"])
async def test_old_blobs_in_use_get_a_new_date(
    tmp_path: Path, age: timedelta, renewed: bool, by: str
) -> None:
    """Storing and renewing give a blob a new date, at most once a day."""
    store = FileBlobs(tmp_path)
    name = await store.put(b"carried along")
    (file,) = _files(tmp_path)
    before = _set_age(file, age)
    await (store.put(b"carried along") if by == "put" else store.renew(name))
    assert (file.stat().st_mtime > before + 60) is renewed


async def test_blob_stored_since_it_was_listed_stays(tmp_path: Path) -> None:
    """A collector deletes by the date at the time of the deletion, not by the one that it was told."""
    store = FileBlobs(tmp_path)
    name = await store.put(b"stored again")
    (file,) = _files(tmp_path)
    _set_age(file, timedelta(days=40))
    (listed,) = [blob async for blob in store.list_blobs()]
    await store.put(b"stored again")
    assert not await store.delete(name, before=listed.stored_at + timedelta(days=1))
    assert await FileBlobs(tmp_path).get(name) == b"stored again"


async def test_storing_and_deleting_lose_nothing(tmp_path: Path) -> None:
    """Whoever stores an old blob while it is being deleted can read it afterwards."""
    blobs = [b"%d" % number for number in range(60)]
    names = [await FileBlobs(tmp_path).put(data) for data in blobs]
    for file in _files(tmp_path):
        _set_age(file, timedelta(days=40))
    writer, collector = FileBlobs(tmp_path), FileBlobs(tmp_path)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    await asyncio.gather(
        *(writer.put(data) for data in blobs),
        *(collector.delete(name, before=yesterday) for name in names),
    )
    assert [await FileBlobs(tmp_path).get(name) for name in names] == blobs


def _set_age(file: Path, age: timedelta) -> float:
    date = time.time() - age.total_seconds()
    os.utime(file, (date, date))
    return date


async def test_missing_blob_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=str(tmp_path)):
        await FileBlobs(tmp_path).get("0" * 64)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "/" + "0" * 63])
async def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyError):
        await FileBlobs(tmp_path).get(name)


async def test_damaged_blob_is_an_error(tmp_path: Path) -> None:
    name = await FileBlobs(tmp_path).put(b"content")
    (file,) = _files(tmp_path)
    file.write_bytes(b"c0ntent")
    with pytest.raises(OSError, match="damaged") as raised:
        await FileBlobs(tmp_path).get(name)
    assert name in str(raised.value)
    assert str(file) in str(raised.value)
    assert "store the same content again" in str(raised.value)


async def test_cached_blobs_need_no_disk(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    name = await store.put(b"kept")
    (file,) = _files(tmp_path)
    file.unlink()
    assert await store.get(name) == b"kept"
    forgetful = FileBlobs(tmp_path, cache_bytes=0)
    await forgetful.put(b"kept")
    file.unlink()
    with pytest.raises(KeyError):
        await forgetful.get(name)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
async def test_files_are_readable_by_owner_only(tmp_path: Path, umask: int) -> None:
    """Files and all folders that the store makes are their owner's alone, whatever the umask is."""
    before = os.umask(umask)
    try:
        await FileBlobs(tmp_path / "home" / "blobs").put(b"private")
    finally:
        os.umask(before)
    (file,) = _files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    made = [path for path in file.parents if path.is_relative_to(tmp_path / "home")]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3


@given(st.lists(st.binary(max_size=40)), st.integers(0, 100))
def test_cache_keeps_its_bound(blobs: list[bytes], capacity: int) -> None:
    """It never exceeds its bytes, and returns what was kept under the name."""
    recent = BlobCache(capacity)
    for blob in blobs:
        recent.keep(blob_name(blob), blob)
        kept = {name: recent.get(name) for name in map(blob_name, blobs)}
        assert all(data is None or blob_name(data) == name for name, data in kept.items())
        assert sum(len(data) for data in kept.values() if data is not None) <= capacity
        assert len(blob) > capacity or recent.get(blob_name(blob)) == blob


def _failing(*errors: Exception) -> tuple[list[int], Callable[[], Awaitable[str]]]:
    calls: list[int] = []

    async def effect() -> str:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return "done"

    return calls, effect


async def test_failures_are_retried_then_raised() -> None:
    calls, effect = _failing(OSError("busy"), OSError("busy"))
    assert await with_retries(effect) == "done"
    assert len(calls) == 3
    calls, effect = _failing(*[OSError("full")] * 9)
    with pytest.raises(OSError, match="full"):
        await with_retries(effect)
    assert len(calls) == 4


async def test_key_error_is_not_retried() -> None:
    calls, effect = _failing(*[KeyError("none")] * 9)
    with pytest.raises(KeyError):
        await with_retries(effect)
    assert len(calls) == 1


async def test_store_is_opened_by_url(tmp_path: Path) -> None:
    for url in (f"file:{tmp_path}/a", f"file://{tmp_path}/b"):
        store = open_store(url)
        assert isinstance(store, FileBlobs)
        assert not (tmp_path / url[-1]).exists()
        await store.put(b"x")
        assert (tmp_path / url[-1]).is_dir()
    assert isinstance(open_store("s3://bucket/prefix"), S3Blobs)
    assert isinstance(open_store("s3://bucket"), S3Blobs)


@pytest.mark.parametrize(
    "url", ["", "file:", "s3://", "s3:/x", "/plain/path", "http://x/y", "file://host/x", "s3://["]
)
def test_bad_url_says_what_to_write(url: str) -> None:
    with pytest.raises(DefinitionError, match="s3://bucket/prefix"):
        open_store(url)
