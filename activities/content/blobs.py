"""Blob stores: a folder, or an S3 bucket. A blob's name is the SHA-256 of its bytes, in hex."""

import asyncio
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from cachetools import LRUCache

from perdure.blobs import BlobStore
from perdure.errors import DefinitionError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

CACHE_BYTES: Final = 32 * 1024 * 1024
_RETRY_DELAYS: Final = (0.05, 0.2, 0.8)
"""Seconds before the first, second and third retry."""
_THREADS: Final = 16
_NAME: Final = re.compile(r"[0-9a-f]{64}")
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


def _verify(name: str, data: bytes, where: object) -> bytes:
    if blob_name(data) != name:
        raise OSError(f"blob {name} is damaged in {where}")
    return data


class FileBlobs:
    """Blob store in a folder that workers and clients share; readable by its owner only."""

    def __init__(self, root: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._root = root
        self._recent = BlobCache(cache_bytes)
        # Threads of its own: the default pool may be full of slow synchronous tools.
        self._threads = ThreadPoolExecutor(_THREADS, "perdure-blobs")

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

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _path(self, name: str) -> Path:
        # 256 folders keep each folder small. The check refuses names that would be paths.
        if not _NAME.fullmatch(name):
            raise KeyError(f"{name!r} is not the name of a blob")
        return self._root / name[:2] / name[2:]

    def _write(self, data: bytes) -> str:
        name = blob_name(data)
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            # A file of this name is complete, because the rename below comes after the sync.
            if path.stat().st_size == len(data):
                return name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
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
        try:
            return _verify(name, self._path(name).read_bytes(), self._root)
        except FileNotFoundError:
            raise KeyError(f"no blob {name} in {self._root}") from None


def _sync_folder(folder: Path) -> None:
    """Sync the folder, which makes the rename in it durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class S3Blobs:
    """Blob store in an S3 bucket, or in any service with S3's interface; credentials by the AWS chain."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._recent = BlobCache(cache_bytes)
        self._threads = ThreadPoolExecutor(_THREADS, "perdure-s3")

    async def put(self, data: bytes) -> str:
        """Store the bytes and return their name: see `BlobStore`."""
        name = await self._in_thread(lambda: self._write(data))
        self._recent.keep(name, data)
        return name

    async def get(self, name: str) -> bytes:
        """Return the blob's bytes: see `BlobStore`.

        Raises:
            PermissionError: S3 refuses; without `s3:ListBucket` it also refuses a blob that does not exist.

        """
        data = self._recent.get(name)
        if data is None:
            data = await self._in_thread(lambda: self._read(name))
            self._recent.keep(name, data)
        return data

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @cached_property
    def _s3(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=_THREADS,
            # Newer checksums are optional in S3, and unknown to some services with S3's interface.
            request_checksum_calculation="when_required" if self._endpoint_url else "when_supported",
        )
        # Not boto3's default session, which is not thread-safe.
        session: Any = boto3.session.Session(region_name=self._region)
        return cast("S3Client", session.client("s3", endpoint_url=self._endpoint_url, config=config))

    def _key(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise KeyError(f"{name!r} is not the name of a blob")
        return self._prefix + name

    def _write(self, data: bytes) -> str:
        name = blob_name(data)
        # The check saves the upload. Equal names are equal bytes, so a race only writes them twice.
        if not self._exists(name, len(data)):
            self._s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=data)
        return name

    def _exists(self, name: str, size: int) -> bool:
        from botocore.exceptions import ClientError

        try:
            found = self._s3.head_object(Bucket=self._bucket, Key=self._key(name))
        except ClientError as error:
            # Without the right to list, S3 answers 403 for a missing blob too. The upload then tells.
            if _status(error) in (403, 404):
                return False
            raise
        return found["ContentLength"] == size

    def _read(self, name: str) -> bytes:
        from botocore.exceptions import ClientError

        where = f"s3://{self._bucket}/{self._prefix}"
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._key(name))
            return _verify(name, answer["Body"].read(), where)
        except ClientError as error:
            if _status(error) == 404:
                raise KeyError(f"no blob {name} in {where}") from None
            if _status(error) == 403:
                raise PermissionError(f"blob {name} in {where}: {error}") from None
            raise


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def open_store(
    url: str,
    *,
    s3_endpoint: str | None = None,
    s3_region: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> BlobStore:
    """Return the store of a URL: `file:<folder>`, `s3://bucket/prefix` or `python:module:function`.

    Of the first two, nothing is opened or created yet. The last one calls the function, without arguments.

    Raises:
        DefinitionError: it is none of these, or the function gives no store.

    """
    if url.startswith("python:"):
        return _import_store(url)
    problem = f"blob store {url!r}: write file:/a/folder, s3://bucket/prefix or python:module:function"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DefinitionError(f"{problem} ({error})") from None
    if parts.scheme == "s3" and parts.netloc:
        return S3Blobs(parts.netloc, parts.path, s3_endpoint, s3_region, cache_bytes=cache_bytes)
    folder = url.removeprefix("file:").removeprefix("//")
    if parts.scheme != "file" or not folder or parts.netloc:
        raise DefinitionError(problem)
    try:
        return FileBlobs(Path(folder).expanduser(), cache_bytes=cache_bytes)
    except RuntimeError as error:
        # "~name" of a user that this machine does not know.
        raise DefinitionError(f"{problem} ({error})") from None


def _import_store(url: str) -> BlobStore:
    module, _, function = url.removeprefix("python:").partition(":")
    try:
        store = getattr(import_module(module), function)()
    except Exception as error:
        # The module is the user's: it may raise anything, and its error must name the setting.
        raise DefinitionError(f"blob store {url!r}: {type(error).__name__}: {error}") from error
    if not isinstance(store, BlobStore):
        raise DefinitionError(f"blob store {url!r}: {store!r} has no put and get; see docs/blob_stores.md")
    return store
