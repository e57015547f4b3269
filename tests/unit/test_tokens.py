"""Estimates of tokens are upper bounds, and not wild ones."""

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    estimated_tokens,
)
from perdure.model import ModelConfig, ModelRequest, ToolDefinition
from perdure.providers.conversation import estimate_input_tokens
from perdure.providers.count import CallCount
from perdure.tokens import (
    LARGEST_DOCUMENT,
    LARGEST_IMAGE,
    PAGE_TOKENS,
    document_tokens,
    image_tokens,
    text_tokens,
)
from tests.token_counts.samples import samples

COUNTS: Mapping[str, Mapping[str, int]] = json.loads(
    (Path(__file__).parents[1] / "token_counts/counts.json").read_text()
)
SAMPLES = samples()
NATURAL = (
    "english",
    "german",
    "python",
    "json",
    "html",
    "csv",
    "shell",
    "markdown_table",
    "chinese",
    "japanese",
    "russian",
)


@pytest.mark.parametrize("name", SAMPLES)
def test_text_is_never_underestimated(name: str) -> None:
    """No recorded tokenizer counts more for a text than the estimate, whole or in halves."""
    text = SAMPLES[name]
    counted = max(COUNTS[name].values())
    half = len(text) // 2
    assert text_tokens(text) >= counted
    assert text_tokens(text[:half]) + text_tokens(text[half:]) >= counted


@pytest.mark.parametrize("name", NATURAL)
def test_estimates_are_not_wild(name: str) -> None:
    """A text that people and programs write is estimated at most at 2.4 times Claude's count."""
    assert text_tokens(SAMPLES[name]) <= 2.4 * COUNTS[name]["claude2"]


def test_each_kind_of_text_was_counted() -> None:
    assert set(COUNTS) == set(SAMPLES)
    assert all(len(counts) == 5 for counts in COUNTS.values())


def test_all_that_a_model_reads_counts() -> None:
    """Text counts wherever it stands in a message: as thought, argument, result or block of a provider."""
    text = SAMPLES["hex"]
    counted = max(COUNTS["hex"].values())
    carriers: list[Part] = [
        Text(text=text),
        Thinking(text=text),
        Thinking(signature=text),
        Thinking(redacted=text),
        Opaque(provider="x", data={"encrypted": text}),
        ToolCall(id="c", name="n", arguments={"deep": [{"er": text}]}),
        ToolResult(call_id="c", name="n", content=[Text(text=text)]),
    ]
    for part in carriers:
        assert estimated_tokens(Message(role="assistant", parts=[part])) >= counted


def _png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02"


def _jpeg(width: int, height: int) -> bytes:
    comment = b"\xff\xfe\x00\x06abcd"
    return b"\xff\xd8" + comment + b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" * 12


def _gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00" * 8


def _webp(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + b"\x00" * 4 + size


@pytest.mark.parametrize("picture", [_png, _jpeg, _gif, _webp])
@pytest.mark.parametrize(
    ("width", "height", "counted"), [(200, 200, 54), (1000, 1000, 1334), (1092, 1092, 1590), (8, 8, 255)]
)
def test_picture_counts_by_its_size(picture: Any, width: int, height: int, counted: int) -> None:
    """Anthropic's documented examples, and OpenAI's smallest; at most twice of the larger ones."""
    estimated = image_tokens(picture(width, height))
    assert counted <= estimated <= max(2.5 * counted, 300)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WEBPVP8X", b"not a picture"]
)
def test_unreadable_picture_counts_as_the_largest(data: bytes) -> None:
    assert image_tokens(data) == LARGEST_IMAGE


def _pdf(pages: int) -> bytes:
    kids = b"".join(b"%d 0 obj\n<< /Type /Page /Parent 2 0 R >>\nendobj\n" % (n + 3) for n in range(pages))
    return b"%PDF-1.4\n2 0 obj\n<< /Type /Pages /Count " + str(pages).encode() + b" >>\nendobj\n" + kids


def _compressed_pdf(pages: int) -> bytes:
    objects = zlib.compress(_pdf(pages)[9:])
    return b"%PDF-1.7\n9 0 obj\n<< /Type /ObjStm /Filter /FlateDecode >>\nstream\n" + objects + b"\nendstream"


def _office_file(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", f"<w:t>{text}</w:t>")
    return file.getvalue()


def test_document_counts_by_its_pages() -> None:
    """Pages count in both forms of a PDF, whatever a second count in the file says."""
    for make in (_pdf, _compressed_pdf):
        for pages in (1, 7, 100):
            assert document_tokens(make(pages), "application/pdf") == pages * PAGE_TOKENS
    assert document_tokens(_pdf(40).replace(b"/Count 40", b"/Count 1"), "application/pdf") == 40 * PAGE_TOKENS


def _page(content: bytes, about: bytes = b"", form: bytes = b"") -> bytes:
    stream = b"4 0 obj\n<< /Length %d %s >>\nstream\n%s\nendstream\nendobj\n"
    return _pdf(1) + stream % (len(content), about, content) + form


TOLD = b"the parties agree on this. " * 40_000
SHOWN = b"BT /F1 1 Tf (" + TOLD + b") Tj ET"
FLATE = b"/Filter /FlateDecode"
LINE = TOLD[:5400]
FULL_PAGES: dict[str, bytes] = {
    "deflated": _page(zlib.compress(SHOWN), FLATE),
    "plain": _page(SHOWN),
    "in an array": _page(zlib.compress(b"BT [(" + TOLD.replace(b" ", b")-20(") + b")] TJ ET"), FLATE),
    "in hex": _page(zlib.compress(b"BT <" + TOLD.hex().encode() + b"> Tj ET"), FLATE),
    "two bytes a letter": _page(
        zlib.compress(b"BT <" + TOLD.decode().encode("utf-16-be").hex().encode() + b"> Tj ET"), FLATE
    ),
    "in nested parentheses": _page(zlib.compress(b"BT (" + b"(((" + TOLD + b")))) Tj ET"), FLATE),
    "said to be a picture": _page(zlib.compress(SHOWN), b"/Subtype /Image " + FLATE),
    "of a length that lies": _page(zlib.compress(SHOWN), b"/Length 3 " + FLATE),
    "with an indirect filter": _page(zlib.compress(SHOWN), b"/Filter 9 0 R"),
    "with an escaped filter": _page(zlib.compress(SHOWN), b"/#46ilter /FlateDecode"),
    "in base 85": _page(
        base64.a85encode(zlib.compress(SHOWN)) + b"~>", b"/Filter [/ASCII85Decode /FlateDecode]"
    ),
    "in hexadecimal": _page(
        zlib.compress(SHOWN).hex().encode() + b">", b"/Filter [/ASCIIHexDecode /FlateDecode]"
    ),
    "in a form placed often": _page(
        zlib.compress(b"/Fm0 Do " * 200),
        FLATE,
        b"5 0 obj\n<< /Subtype /Form %s >>\nstream\n%s\nendstream"
        % (FLATE, zlib.compress(b"BT (" + LINE + b") Tj ET")),
    ),
}


@pytest.mark.parametrize("name", FULL_PAGES)
def test_full_page_counts_by_its_text(name: str) -> None:
    """A megabyte of text on one page, in few bytes, counts as that text does."""
    assert document_tokens(FULL_PAGES[name], "application/pdf") >= len(TOLD) // 4


@pytest.mark.parametrize("about", [b"/Filter /LZWDecode", b"/Filter [/ASCII85Decode /LZWDecode]", FLATE])
def test_unreadable_page_counts_by_its_bytes(about: bytes) -> None:
    """A stream that cannot be inflated, or is encrypted, may be text; a photograph is none."""
    noise = random.Random(1).randbytes(50_000)
    assert document_tokens(_page(noise, about), "application/pdf") >= 50_000
    locked = _page(zlib.compress(SHOWN[:400_000] + noise), FLATE) + b"trailer << /Encrypt 9 0 R >>"
    assert document_tokens(locked, "application/pdf") >= 50_000
    photograph = _page(noise, b"/Subtype /Image /Filter /DCTDecode")
    assert document_tokens(photograph, "application/pdf") == PAGE_TOKENS


def test_usual_pages_count_as_pages() -> None:
    """Text of usual length, pictures and drawings do not add to what a page counts."""
    words = b"".join(b"1 0 0 1 72.25 700.5 Tm [(agree)-250(to)] TJ " for _ in range(400))
    drawing = b"72.5 14.25 m 99.1 18.2 l S " * 20_000
    pixels = random.Random(2).randbytes(1_000_000)
    for content, about in [
        (b"BT /F1 9 Tf " + words + b"ET", b""),
        (drawing, b""),
        (pixels, b"/Subtype /Image"),
        (pixels, b"/Length1 2000"),
    ]:
        page = _page(zlib.compress(content), about + b" " + FLATE)
        assert document_tokens(page, "application/pdf") == PAGE_TOKENS


@pytest.mark.parametrize("seed", range(4))
def test_broken_pdf_is_counted_quickly(seed: int) -> None:
    """Bombs, and files that begin everything and end nothing, are counted with bounded effort."""
    bombs = [
        b"(" * 1_000_000,
        b"(a" * 500_000 + b") Tj BT ",
        b"stream\n" * 100_000,
        zlib.compress(b"\x00" * 50_000_000, 9),
    ]
    assert document_tokens(_page(bombs[seed], FLATE if seed == 3 else b""), "application/pdf") >= PAGE_TOKENS


def test_other_documents_count_by_their_text() -> None:
    csv = SAMPLES["csv"]
    assert document_tokens(csv.encode(), "text/csv") >= max(COUNTS["csv"].values())
    assert (
        document_tokens(_office_file(SAMPLES["german"] * 50), "application/x")
        >= 50 * COUNTS["german"]["claude2"]
    )
    assert document_tokens(b"%PDF-1.4 \xff encrypted" * 1000, "application/pdf") >= 20_000
    assert document_tokens(b"\xff\xfe\x00" * 5000, "application/x") == 15_000


def test_blob_counts_as_what_is_in_it() -> None:
    """A medium in the blob store counts by its noted tokens; without a note, as the largest of its kind."""
    noted = Message(role="user", parts=[Document(blob="b", tokens=PAGE_TOKENS * 90)])
    assert estimated_tokens(noted) >= PAGE_TOKENS * 90
    assert estimated_tokens(Message(role="user", parts=[Document(blob="b")])) >= LARGEST_DOCUMENT
    assert estimated_tokens(Message(role="user", parts=[Image(blob="b")])) >= LARGEST_IMAGE
    inline = base64.b64encode(_pdf(12)).decode()
    lying = Message(role="user", parts=[Document(data=inline, tokens=1)])
    assert estimated_tokens(lying) >= 12 * PAGE_TOKENS


def test_request_counts_blobs_that_it_brings() -> None:
    result = ToolResult(call_id="c", name="n", content=[Document(blob="b")])
    request = ModelRequest(
        config=ModelConfig(name="anthropic:x"),
        messages=(Message(role="tool", parts=[result]),),
        blobs={"b": _pdf(3)},
        tools=(ToolDefinition(name="n", description="d", input_schema={"type": "object"}),),
    )
    # The instructions that Anthropic adds for tools count too.
    assert 3 * PAGE_TOKENS + 800 < estimate_input_tokens(request) < 3 * PAGE_TOKENS + 1200


def test_running_count_never_misses_what_was_written() -> None:
    """Text in small pieces counts as the whole does; a final count of the provider is taken as it is."""
    text = SAMPLES["english"] * 40
    count = CallCount(ModelRequest(config=ModelConfig(name="scripted:x"), max_tokens=100_000))
    for at in range(0, len(text), 7):
        count.write(text[at : at + 7])
    cost = count.cost()
    assert cost.estimated
    assert 40 * max(COUNTS["english"].values()) <= cost.output_tokens <= 1.05 * text_tokens(text)
    assert count.upper_bound().output_tokens == 100_000


def test_hidden_thinking_counts_by_its_time() -> None:
    clock = iter((0.0, 4.0, 4.0, 400.0)).__next__
    config = ModelConfig(name="anthropic:x", thinking="adaptive", max_tokens=8192)
    count = CallCount(ModelRequest(config=config, max_tokens=8192), clock)
    assert count.cost().output_tokens == 2064
    count.write("hm")
    assert count.cost().output_tokens == 2067
    assert count.cost().output_tokens == 8192  # never more than the reply may be long
