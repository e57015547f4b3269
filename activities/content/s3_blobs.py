"""Blob store in an S3 bucket."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.blobs import StoredBlob

from .blob_cache import CACHE_BYTES, NAME, THREADS, BlobCache, T, blob_name, check_name, is_due, verify

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_FORBIDDEN, _MISSING = 403, 404
_MD5_CHARS: Final = 32


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
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._recent = BlobCache(cache_bytes)
        self._threads = ThreadPoolExecutor(THREADS, "perdure-s3")

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

    async def list_blobs(self) -> AsyncIterator[StoredBlob]:
        """Yield every blob below the prefix: see `DatedBlobStore`."""
        pages = iter(
            self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        )
        while (page := await self._in_thread(lambda: next(pages, None))) is not None:
            for found in page.get("Contents", ()):
                name = found.get("Key", "").removeprefix(self.prefix)
                # Other objects below the prefix are not ours.
                if NAME.fullmatch(name) and "LastModified" in found:
                    yield StoredBlob(
                        name=name, size_bytes=found.get("Size", 0), stored_at=found["LastModified"]
                    )

    async def renew(self, name: str) -> None:
        """Renew the object's date: see `DatedBlobStore`."""
        await self._in_thread(lambda: self._renew(name))

    async def delete(self, name: str, *, before: datetime) -> bool:
        """Delete the object if it is that old: see `DatedBlobStore`.

        S3 cannot do both at once. An object that is stored again within the same few milliseconds is lost.
        """
        return await self._in_thread(lambda: self._delete(name, before))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @cached_property
    def s3(self) -> "S3Client":
        """Client of S3, made on first use."""
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=THREADS,
            # Newer checksums are optional in S3, and unknown to some services with S3's interface.
            request_checksum_calculation="when_required" if self._endpoint_url else "when_supported",
        )
        # Not boto3's default session, which is not thread-safe.
        session: Any = boto3.session.Session(region_name=self._region)
        return cast("S3Client", session.client("s3", endpoint_url=self._endpoint_url, config=config))

    def _key(self, name: str) -> str:
        return self.prefix + check_name(name)

    @property
    def _where(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def _write(self, data: bytes) -> str:
        name = blob_name(data)
        # The check saves the upload. Equal names are equal bytes, so a race only writes them twice.
        found = self._find(name)
        if found is None or not _is_whole(found, data) or is_due(found["LastModified"]):
            self.s3.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)
        return name

    def _find(self, name: str) -> "HeadObjectOutputTypeDef | None":
        """Return what S3 says of the object, or None if it shows none."""
        from botocore.exceptions import ClientError

        try:
            return self.s3.head_object(Bucket=self.bucket, Key=self._key(name))
        except ClientError as error:
            # Without the right to list, S3 answers 403 for a missing blob too. The upload then tells.
            if _status(error) in (_FORBIDDEN, _MISSING):
                return None
            raise

    def _read(self, name: str) -> bytes:
        from botocore.exceptions import ClientError

        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=self._key(name))
            return verify(name, answer["Body"].read(), self._where)
        except ClientError as error:
            if _status(error) == _MISSING:
                raise KeyError(f"no blob {name} in {self._where}") from None
            if _status(error) == _FORBIDDEN:
                raise PermissionError(f"blob {name} in {self._where}: {error}") from None
            raise

    def _renew(self, name: str) -> None:
        found = self._find(name)
        if found is None:
            raise KeyError(f"no blob {name} in {self._where}")
        if is_due(found["LastModified"]):
            key = self._key(name)
            # S3 copies an object onto itself only if its metadata are replaced.
            self.s3.copy_object(
                Bucket=self.bucket,
                Key=key,
                CopySource={"Bucket": self.bucket, "Key": key},
                MetadataDirective="REPLACE",
            )

    def _delete(self, name: str, before: datetime) -> bool:
        found = self._find(name)
        if found is None or found["LastModified"] >= before:
            return False
        self.s3.delete_object(Bucket=self.bucket, Key=self._key(name))
        return True


def _is_whole(found: "HeadObjectOutputTypeDef", data: bytes) -> bool:
    """Check whether the object has these bytes, as far as S3 tells without sending them."""
    if found["ContentLength"] != len(data):
        return False
    tag = found["ETag"].strip('"')
    if len(tag) != _MD5_CHARS or found.get("SSEKMSKeyId") or found.get("SSECustomerAlgorithm"):
        # Such a tag is no digest of the content. S3 itself keeps objects whole: the size must do.
        return True
    return tag == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
