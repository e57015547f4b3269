"""Blob store of a process: a folder, an S3 bucket, or a store of the user's, by its URL."""

from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from perdure.blobs import BlobStore
from perdure.errors import DefinitionError

from .blob_cache import CACHE_BYTES, BlobCache, blob_name, with_retries
from .file_blobs import FileBlobs
from .s3_blobs import S3Blobs

__all__ = ["CACHE_BYTES", "BlobCache", "FileBlobs", "S3Blobs", "blob_name", "open_store", "with_retries"]


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
