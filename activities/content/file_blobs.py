"""Blob store in a folder."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from perdure.blobs import StoredBlob

from .blob_cache import (
    CACHE_BYTES,
    NAME,
    THREADS,
    BlobCache,
    T,
    blob_name,
    check_name,
    is_due,
    verify,
    with_retries,
)

_UNFINISHED: Final = ".new-"
_CONDEMNED: Final = ".old-"


class FileBlobs:
    """Blob store in a folder that workers and clients share; readable by its owner only."""

    def __init__(self, root: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._root = root
        self._recent = BlobCache(cache_bytes)
        # Threads of its own: the default pool may be full of slow synchronous tools.
        self._threads = ThreadPoolExecutor(THREADS, "perdure-blobs")

    async def put(self, data: bytes) -> str:
        """Store the bytes and return their name; synced to disk when this returns."""
        name = await with_retries(lambda: self._in_thread(lambda: self._write(data)), on=OSError)
        self._recent.keep(name, data)
        return name

    async def get(self, name: str) -> bytes:
        """Return the blob's bytes: see `BlobStore`."""
        data = self._recent.get(name)
        if data is None:
            data = await with_retries(lambda: self._in_thread(lambda: self._read(name)), on=OSError)
            self._recent.keep(name, data)
        return data

    async def list_blobs(self) -> AsyncIterator[StoredBlob]:
        """Yield every blob: see `DatedBlobStore`."""
        for folder in await self._in_thread(lambda: _folders(self._root)):
            for blob in await self._in_thread(lambda folder=folder: _blobs_in(folder)):  # type: ignore[misc]
                yield blob

    async def renew(self, name: str) -> None:
        """Renew the blob's date: see `DatedBlobStore`."""
        await with_retries(lambda: self._in_thread(lambda: self._renew(name)), on=OSError)

    async def delete(self, name: str, *, before: datetime) -> bool:
        """Delete the blob if it is that old: see `DatedBlobStore`."""
        return await self._in_thread(lambda: self._delete(name, before))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _path(self, name: str) -> Path:
        # 256 folders keep each folder small. The check refuses names that would be paths.
        check_name(name)
        return self._root / name[:2] / name[2:]

    def _write(self, data: bytes) -> str:
        name = blob_name(data)
        path = self._path(name)
        if _keeps(path, data):
            return name
        make_private_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_UNFINISHED)
        try:
            os.fchmod(handle, 0o600)  # whatever the umask is
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return name

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return verify(name, path.read_bytes(), path)
        except FileNotFoundError:
            raise KeyError(f"no blob {name} in {self._root}") from None

    def _renew(self, name: str) -> None:
        path = self._path(name)
        try:
            if is_due(_date(path.stat())):
                os.utime(path)
        except FileNotFoundError:
            raise KeyError(f"no blob {name} in {self._root}") from None

    def _delete(self, name: str, before: datetime) -> bool:
        path = self._path(name)
        # Moved away before its date is read: whoever stores the blob from now on writes a new file, and whoever
        # stored it before has renewed this one.
        condemned = path.with_name(f"{_CONDEMNED}{path.name}")
        try:
            if _date(path.stat()) >= before:
                return False
            path.replace(condemned)
            if _date(condemned.stat()) >= before:
                condemned.replace(path)
                return False
            condemned.unlink()
        except FileNotFoundError:
            return False  # another collector has it
        return True


def _keeps(path: Path, data: bytes) -> bool:
    """Check whether the file has these bytes, and renew it if it has.

    It may not have them, though it has their name: a disk loses content, and a copy can be cut off.
    """
    try:
        found = path.stat()
        if found.st_size != len(data) or path.read_bytes() != data:
            return False
        if is_due(_date(found)):
            os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return False  # unreadable: written anew
    return True


def make_private_folder(folder: Path) -> None:
    """Create the folder and the missing ones above it, for their owner alone whatever the umask is."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was quicker
            path.mkdir(mode=0o700)
            path.chmod(0o700)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("[0-9a-f][0-9a-f]") if path.is_dir())


def _blobs_in(folder: Path) -> list[StoredBlob]:
    blobs: list[StoredBlob] = []
    for entry in os.scandir(folder):
        name = folder.name + entry.name
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            if NAME.fullmatch(name):
                found = entry.stat()
                blobs.append(StoredBlob(name=name, size_bytes=found.st_size, stored_at=_date(found)))
    return blobs


def _date(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


def _sync_folder(folder: Path) -> None:
    """Sync the folder, which makes the rename in it durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
