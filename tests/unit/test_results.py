"""Tool results: any value becomes content, and a cut text is read on without loss."""

import base64
import hashlib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from perdure.activities.content.results import ResultContent, read_more, text_of, to_content
from perdure.messages import Document, Image, Text, ToolResult
from perdure.wire.effects import ToolInput


class Memory:
    """A blob store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.kept[name] = data
        return name

    async def get(self, name: str) -> bytes:
        return self.kept[name]


class Place(BaseModel):
    city: str


def wanted(name: str, offset: int, preview: int) -> ToolInput:
    return ToolInput(
        agent="a",
        tool="read_result",
        call_id="call-1-1",
        arguments={"result": name, "offset": offset},
        idempotency_key="k",
        preview_bytes=preview,
    )


def text(kept: ResultContent) -> str:
    [part] = kept.parts
    assert isinstance(part, Text)
    return part.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("as it is", "as it is"),
        (None, "done"),
        ("", "done"),
        ([], "[]"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (Place(city="Bonn"), '{"city":"Bonn"}'),
        ([Place(city="Bonn")], '[{"city":"Bonn"}]'),
        (date(2026, 11, 20), '"2026-11-20"'),
        (0, "0"),
        (False, "false"),
        ("half \ud83d \udc80", "half \ufffd \ufffd"),
        (Text(text="half \ud83d"), "half \ufffd"),
        ([Text(text="a"), "b", 3], "a\nb\n3"),
    ],
)
async def test_any_value_becomes_text(value: Any, shown: str) -> None:
    kept = await to_content(value, Memory(), 1_000)
    assert text(kept) == shown
    assert kept.spilled is None
    assert ToolResult(call_id="c", name="n", content=kept.parts).model_dump_json()


@given(st.text(min_size=1, max_size=300), st.integers(16, 64), st.integers(0, 5))
async def test_cut_result_is_read_completely(words: str, preview: int, off: int) -> None:
    """The pieces join to the complete text, without loss or repetition."""
    blobs = Memory()
    kept = await to_content(words, blobs, preview)
    if kept.spilled is None:
        assert text(kept) == words
        return
    shown = text(kept).rpartition("\n[cut here: ")[0]
    assert words.startswith(shown)
    assert f"offset={len(shown.encode())})" in text(kept)
    whole, offset = shown, len(shown.encode())
    while offset < len(words.encode()):
        piece = text(await read_more(blobs, wanted(kept.spilled, offset, preview)))
        said, _, more = piece.rpartition("\n[")
        if not more.endswith("]") or " bytes follow, from offset " not in more:
            whole += piece
            break
        whole += said
        assert int(more.removesuffix("]").rpartition(" ")[2]) > offset
        offset = int(more.removesuffix("]").rpartition(" ")[2])
    assert whole == words


@given(st.text(alphabet="aé日😀", min_size=10, max_size=60), st.integers(0, 200))
async def test_offset_within_character_moves_on(words: str, offset: int) -> None:
    blobs = Memory()
    data = words.encode()
    name = await blobs.put(data)
    piece = text(await read_more(blobs, wanted(name, offset, 16)))
    if offset >= len(data):
        assert piece == "(nothing there: the result has ended)"
        return
    said, _, more = piece.rpartition("\n[")
    if " bytes follow, from offset " in more:
        following = int(more.removesuffix("]").rpartition(" ")[2])
        assert data[following:].decode() == data[following:].decode(errors="ignore")
        assert words.endswith(said + data[following:].decode())
    else:
        assert words.endswith(piece) or piece == "(nothing there: the result has ended)"


async def test_missing_result_is_named() -> None:
    assert text(await read_more(Memory(), wanted("nope", 0, 100))) == "there is no result 'nope'"


async def test_media_are_stored() -> None:
    """Text comes first, small media stay inline."""
    blobs = Memory()
    data = base64.b64encode(b"x" * 9_000).decode()
    small = Image(data="QQ==")
    kept = await to_content(["see:", Image(data=data), small, Document(data=data, name="d")], blobs, 100)
    shown, image, still, document = kept.parts
    assert shown == Text(text="see:")
    assert isinstance(image, Image)
    assert image.data is None
    assert blobs.kept[str(image.blob)] == b"x" * 9_000
    assert still == small
    assert isinstance(document, Document)
    assert (document.name, document.blob) == ("d", image.blob)


async def test_picture_alone_needs_no_text() -> None:
    assert (await to_content(Image(data="QQ=="), Memory(), 100)).parts == [Image(data="QQ==")]


def test_unwritable_value_is_refused() -> None:
    with pytest.raises(ValueError, match="Unable to serialize"):
        text_of(object())
