"""Results of MCP tools as parts of ours."""

import base64
from typing import Any

import mcp_types as types
import pytest

from perdure.activities.mcp.content import error_text, to_parts
from perdure.messages import Document, Image, Text

from .server import PNG

PDF = base64.b64encode(b"%PDF-1.4 ... %%EOF").decode()
PICTURE = base64.b64encode(PNG).decode()


def result(*content: Any, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=list(content), **more)


def text(words: str) -> types.TextContent:
    return types.TextContent(type="text", text=words)


def embedded(data: str, uri: str = "file:///d/report.pdf") -> types.EmbeddedResource:
    blob = types.BlobResourceContents(uri=uri, blob=data, mime_type="application/octet-stream")
    return types.EmbeddedResource(type="resource", resource=blob)


def test_bytes_decide_what_a_part_is() -> None:
    """An image or PDF is known by its bytes; the server's word on its type does not count."""
    found = to_parts(
        result(types.ImageContent(type="image", data=PICTURE, mime_type="image/jpeg"), embedded(PDF))
    )
    image, document = found
    assert isinstance(image, Image)
    assert image.media_type == "image/png"
    assert isinstance(document, Document)
    assert (document.media_type, document.name) == ("application/pdf", "report.pdf")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (types.AudioContent(type="audio", data="AAEC", mime_type="audio/wav"), "audio, of type 'audio/wav'"),
        (types.ImageContent(type="image", data="?", mime_type="image/png"), "it is not base64"),
        (types.ImageContent(type="image", data=PICTURE[:60], mime_type="image/png"), "it was cut"),
        (types.ImageContent(type="image", data="AAEC", mime_type="image/png"), "3 bytes"),
        (embedded("AAEC", "file:///d/raw.bin"), "raw.bin"),
        (types.ResourceLink(type="resource_link", name="n", uri="https://a/b"), "(resource: n, https://a/b)"),
    ],
    ids=["audio", "no base64", "cut image", "no image", "blob", "link"],
)
def test_other_parts_become_words(part: Any, words: str) -> None:
    """What no model can be shown is told to it in words; nothing disappears."""
    [found] = to_parts(result(part))
    assert isinstance(found, Text)
    assert words in found.text


@pytest.mark.parametrize(
    ("texts", "structured", "parts"),
    [
        (['{"a": 1, "b": 2}'], {"b": 2, "a": 1}, 1),
        (["3"], {"result": 3}, 1),
        (["yes"], {"result": "yes"}, 1),
        (["a file"], {"content": "a file"}, 1),
        (["a file"], {"content": "another"}, 2),
        (["x", "y"], {"result": ["x", "y"]}, 2),
        (["x"], {"result": ["x", "y"]}, 2),
        (["see below"], {"a": 1}, 2),
        ([], {"a": 1}, 1),
        ([], None, 0),
        ([], [], 1),
    ],
)
def test_structured_content_is_shown_once(texts: list[str], structured: Any, parts: int) -> None:
    """Structured content is added where the texts do not say it already."""
    assert len(to_parts(result(*map(text, texts), structured_content=structured))) == parts


def test_errors_have_words() -> None:
    """An error result is told in the server's words, or said to have none."""
    assert error_text(result(text("no disk"), is_error=True)) == "no disk"
    assert "gave no reason" in error_text(result(is_error=True))
