"""Images and documents from bytes, files and addresses: their bytes decide what they are."""

import base64
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from perdure.attachments import MOST_BYTES
from perdure.errors import InvalidRequest
from perdure.messages import Document, Image

from ..pictures import PDF, png
from .providers.server import Answer, Stub, stub_server

PICTURE = png()
PAPER = base64.b64decode(PDF)


@pytest.fixture
async def web() -> AsyncGenerator[Stub]:
    async with stub_server() as stub:
        yield stub


def data_of(part: Image | Document) -> bytes:
    return base64.b64decode(part.data or "")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_constructors_take_bytes(kind: Callable[[bytes], bytes]) -> None:
    """Bytes become base64, which JSON can hold; text is base64 already."""
    image = Image.model_validate({"data": kind(PICTURE)})
    assert data_of(image) == PICTURE
    assert Image.model_validate_json(image.model_dump_json()) == image == Image(data=image.data)
    assert Document.model_validate({"data": kind(PAPER)}).data == PDF
    assert "blob" not in image.model_dump()
    assert "data" not in Image(blob="a" * 64).model_dump()


@pytest.mark.parametrize("carrier", ["bytes", "path", "url"])
async def test_bytes_decide_the_type(carrier: str, tmp_path: Path, web: Stub) -> None:
    """What the name or the server says of a picture or document counts only where its bytes prove nothing."""

    async def made(
        kind: type[Image] | type[Document], data: bytes, name: str, stated: str
    ) -> Image | Document:
        match carrier:
            case "bytes":
                return kind.from_bytes(data, stated, name=name)
            case "path":
                (tmp_path / name).write_bytes(data)
                return kind.from_path(tmp_path / name)
            case _:
                web.script(Answer(headers={"content-type": f"{stated}; charset=x"}, chunks=(data,)))
                return await kind.from_url(f"{web.url}/shelf/{name}?key=secret")

    image = await made(Image, PICTURE, "dot.jpg", "image/jpeg")
    assert (image.media_type, data_of(image)) == ("image/png", PICTURE)
    paper = await made(Document, PAPER, "terms.txt", "text/plain")
    assert (paper.media_type, data_of(paper)) == ("application/pdf", PAPER)
    assert isinstance(paper, Document)
    assert paper.name == "terms.txt"
    notes = await made(Document, b"a,b\n1,2\n", "notes.csv", "text/csv")
    assert notes.media_type == "text/csv"
    for kind, data, name, why in (
        (Image, b"hello", "hello.txt", "no picture"),
        (Image, PAPER, "a.png", "send it as a Document"),
        (Document, PICTURE, "b.pdf", "send it as an Image"),
        (Image, b"", "empty.png", "empty"),
    ):
        with pytest.raises(InvalidRequest, match=why) as refused:
            await made(kind, data, name, "text/plain")
        assert "secret" not in str(refused.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A file that is not there, is a folder, is too large or of unknown type is refused by its name."""
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "odd.thing").write_bytes(b"?")
    for path, why in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "no such file"),
        (large, "too large"),
        (tmp_path / "odd.thing", "no type that is known"),
    ):
        with pytest.raises(InvalidRequest, match=why) as refused:
            Document.from_path(path)
        assert str(path) in str(refused.value)


async def test_dead_addresses_are_named(web: Stub) -> None:
    """An address that answers with no file, breaks off, or is none, is refused by its name, without its key."""
    cut = Answer(headers={"content-type": "image/png"}, chunks=(PICTURE[:9],), end="cut")
    web.script(Answer(status=404), cut)
    for url, why in (
        (f"{web.url}/a.png?key=secret", "status 404"),
        (f"{web.url}/b.png?key=secret", "cannot be fetched"),
        ("http://127.0.0.1:9/c.png?key=secret", "cannot be fetched"),
        ("file:///etc/hostname", "must begin with http"),
    ):
        with pytest.raises(InvalidRequest, match=why) as refused:
            await Image.from_url(url)
        assert "secret" not in str(refused.value)
