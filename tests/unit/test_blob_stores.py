"""The public contract of blob stores: the folder and the example keep it, a broken store is found out."""

import asyncio
import hashlib
import importlib.util
import re
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from perdure import BlobStore, DatedBlobStore, StoredBlob
from perdure.activities.content.blobs import FileBlobs, open_store
from perdure.errors import DefinitionError
from perdure.testing import BLOB_STORE_CHECKS, DATED_BLOB_STORE_CHECKS, check_blob_store
from perdure.testing.blob_stores import BlobStoreCheck

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sqlite_blobs.py"


@pytest.fixture
def sqlite_blobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, as an importable module."""
    spec = importlib.util.spec_from_file_location("sqlite_blobs", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sqlite_blobs", module)
    spec.loader.exec_module(module)
    return module


each_check = pytest.mark.parametrize(
    "check", [*BLOB_STORE_CHECKS, *DATED_BLOB_STORE_CHECKS], ids=lambda check: check.__name__
)


@each_check
async def test_the_folder_keeps_the_contract(check: BlobStoreCheck, tmp_path: Path) -> None:
    await check(lambda: FileBlobs(tmp_path))


@each_check
async def test_the_example_keeps_the_contract(
    check: BlobStoreCheck, tmp_path: Path, sqlite_blobs: Any
) -> None:
    await check(lambda: sqlite_blobs.DatedSqliteBlobs(tmp_path / "blobs.db"))


class MemoryBlobs:
    """A right store, whose parts the tests below spoil."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    async def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    async def get(self, name: str) -> bytes:
        return self.blobs[name]


class OwnMemory(MemoryBlobs):
    def __init__(self, blobs: dict[str, bytes]) -> None:
        super().__init__({})


class UpperCase(MemoryBlobs):
    async def put(self, data: bytes) -> str:
        return (await super().put(data)).upper()


class NoEmpty(MemoryBlobs):
    async def get(self, name: str) -> bytes:
        return self.blobs.get(name) or self.blobs["nothing"]


class Truncating(MemoryBlobs):
    async def get(self, name: str) -> bytes:
        return (await super().get(name))[:1_000_000]


class Once(MemoryBlobs):
    async def put(self, data: bytes) -> str:
        if hashlib.sha256(data).hexdigest() in self.blobs:
            raise FileExistsError
        return await super().put(data)


class NoneForMissing(MemoryBlobs):
    async def get(self, name: str) -> bytes:
        return self.blobs.get(name, b"")


class RemembersMisses(MemoryBlobs):
    def __init__(self, blobs: dict[str, bytes]) -> None:
        super().__init__(blobs)
        self.missing: set[str] = set()

    async def get(self, name: str) -> bytes:
        if name not in self.blobs or name in self.missing:
            self.missing.add(name)
            raise KeyError(name)
        return self.blobs[name]


class NamesArePaths(MemoryBlobs):
    async def get(self, name: str) -> bytes:
        if "/" in name:
            raise FileNotFoundError(name)
        return await super().get(name)


class OneWriter(MemoryBlobs):
    writers = 0

    async def put(self, data: bytes) -> str:
        OneWriter.writers += 1
        await asyncio.sleep(0)
        busy, OneWriter.writers = OneWriter.writers > 1, OneWriter.writers - 1
        return await super().put(b"" if busy else data)


async def test_a_right_store_passes() -> None:
    blobs: dict[str, bytes] = {}
    assert isinstance(MemoryBlobs(blobs), BlobStore)
    assert not isinstance(MemoryBlobs(blobs), DatedBlobStore)
    await check_blob_store(lambda: MemoryBlobs(blobs))


@pytest.mark.parametrize(
    "broken",
    [
        OwnMemory,
        UpperCase,
        NoEmpty,
        Truncating,
        Once,
        NoneForMissing,
        RemembersMisses,
        NamesArePaths,
        OneWriter,
    ],
)
async def test_a_wrong_store_is_found_out(broken: type[MemoryBlobs]) -> None:
    blobs: dict[str, bytes] = {}
    with pytest.raises((AssertionError, KeyError, FileExistsError)):
        await check_blob_store(lambda: broken(blobs))


class DatedMemory(MemoryBlobs):
    """A right store with dates, whose parts the tests below spoil."""

    dates: ClassVar[dict[str, datetime]] = {}

    async def put(self, data: bytes) -> str:
        name = await super().put(data)
        self.dates[name] = datetime.now(UTC)
        return name

    async def list_blobs(self) -> AsyncIterator[StoredBlob]:
        for name, data in self.blobs.items():
            yield StoredBlob(name=name, size_bytes=len(data), stored_at=self.dates[name])

    async def renew(self, name: str) -> None:
        await self.put(self.blobs[name])

    async def delete(self, name: str, *, before: datetime) -> bool:
        return self.dates[name] < before and self.blobs.pop(name, None) is not None


class ListsNothing(DatedMemory):
    async def list_blobs(self) -> AsyncIterator[StoredBlob]:
        for blob in list[StoredBlob]():
            yield blob


class DeletesAnything(DatedMemory):
    async def delete(self, name: str, *, before: datetime) -> bool:
        return self.blobs.pop(name, None) is not None


class DeletesNothing(DatedMemory):
    async def delete(self, name: str, *, before: datetime) -> bool:
        return self.dates[name] < before


class RenewsNothing(DatedMemory):
    async def renew(self, name: str) -> None:
        pass


async def test_a_right_dated_store_passes() -> None:
    blobs: dict[str, bytes] = {}
    assert isinstance(DatedMemory(blobs), DatedBlobStore)
    await check_blob_store(lambda: DatedMemory(blobs))


@pytest.mark.parametrize("broken", [ListsNothing, DeletesAnything, DeletesNothing, RenewsNothing])
async def test_a_wrong_dated_store_is_found_out(broken: type[MemoryBlobs]) -> None:
    blobs: dict[str, bytes] = {}
    with pytest.raises(AssertionError):
        await check_blob_store(lambda: broken(blobs))


def test_commands_take_store_by_function(
    tmp_path: Path, sqlite_blobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOBS_FILE", str(tmp_path / "blobs.db"))
    assert isinstance(open_store("python:sqlite_blobs:open_blobs"), sqlite_blobs.SqliteBlobs)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("python:", "ValueError"),
        ("python:no_such_module:f", "ModuleNotFoundError"),
        ("python:json:nothing", "AttributeError"),
        ("python:sqlite_blobs:open_blobs", "KeyError: 'BLOBS_FILE'"),
        ("python:builtins:list", "no put and get"),
    ],
)
def test_function_without_store_is_rejected(
    url: str, problem: str, sqlite_blobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLOBS_FILE", raising=False)
    with pytest.raises(DefinitionError, match=f"blob store '{url}': .*{problem}"):
        open_store(url)


def test_page_shows_example_verbatim() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "blob_stores.md").read_text(), re.DOTALL)
    assert len(shown) == 3
    assert all(block in EXAMPLE.read_text() for block in shown)
