"""Bytes of images and documents, from files and addresses."""

import mimetypes
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from perdure.errors import InvalidRequest
from perdure.media_types import sniff_media_type

MOST_BYTES: Final = 50_000_000
"""Size of a file above which it is not read: no provider takes a larger one."""
_TIMEOUT: Final = 30.0
"""Seconds without an answer, or without more of it, after which an address counts as dead."""
_MOST_REDIRECTS: Final = 5


@dataclass(frozen=True, kw_only=True)
class File:
    """Bytes of a file, with its name."""

    data: bytes
    name: str
    source: str
    """The file or address, for errors."""
    stated_type: str | None = None

    @property
    def media_type(self) -> str | None:
        """Type that the bytes prove, else the one that is stated."""
        return sniff_media_type(self.data) or self.stated_type


class FromFile:
    """Constructors of an image or document. The bytes decide its type."""

    @classmethod
    def _of(cls, file: File) -> Self:
        """Return the part with the bytes of the file.

        Raises:
            InvalidRequest: it is none of this kind.

        """
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes, media_type: str | None = None, *, name: str = "document") -> Self:
        """Return the part with these bytes; `media_type` is for a type that they do not prove.

        Raises:
            InvalidRequest: they are empty, or none of this kind.

        """
        return cls._of(_checked(File(data=data, name=name, source="the bytes", stated_type=media_type)))

    @classmethod
    def from_path(cls, path: str | PathLike[str]) -> Self:
        """Return the part with the bytes of a file of this machine.

        Raises:
            InvalidRequest: the file cannot be read, or is none of this kind.

        """
        return cls._of(_checked(_read(Path(path))))

    @classmethod
    async def from_url(cls, url: str) -> Self:
        """Fetch the part from an address: now, by this process, and once.

        Raises:
            InvalidRequest: the address does not answer with one.

        """
        return cls._of(_checked(await _fetch(url)))


def _checked(file: File) -> File:
    if not file.data:
        raise InvalidRequest(f"{file.source}: empty")
    return file


def _read(path: Path) -> File:
    try:
        if not path.is_file():
            raise InvalidRequest(f"{path}: there is no such file")
        _check_size(path.stat().st_size, str(path))
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from None
    stated = mimetypes.guess_type(path.name)[0]
    return File(data=data, name=path.name, source=str(path), stated_type=stated)


async def _fetch(url: str) -> File:
    import httpx2

    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidRequest(f"{url!r} is no address of a file: it must begin with http:// or https://")
    shown = url.partition("?")[0]  # a signed address has its key behind it
    options: dict[str, Any] = {
        "follow_redirects": True,
        "max_redirects": _MOST_REDIRECTS,
        "timeout": _TIMEOUT,
    }
    data = bytearray()
    try:
        async with httpx2.AsyncClient(**options) as client, client.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise InvalidRequest(
                    f"{shown} has answered with status {answer.status_code}, not with a file"
                )
            async for piece in answer.aiter_bytes():
                data += piece
                _check_size(len(data), shown)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise InvalidRequest(f"{shown} cannot be fetched: {type(error).__name__}: {error}") from None
    stated = answer.headers.get("content-type", "").partition(";")[0].strip()
    name = unquote(PurePosixPath(urlsplit(str(answer.url)).path).name)
    return File(data=bytes(data), name=name or "document", source=shown, stated_type=stated or None)


def _check_size(size: int, name: str) -> None:
    if size > MOST_BYTES:
        raise InvalidRequest(f"{name} is too large: more than {MOST_BYTES // 1_000_000} MB")
