"""Images and documents: refused where they enter if no provider could read them, else shown as what they are."""

import base64

import pytest
from temporalio.exceptions import ApplicationError

from perdure.activities.content.attachments import attachment_key, newest_attachments, readable_messages
from perdure.errors import InvalidRequest
from perdure.media import problem_with_attachment
from perdure.messages import Document, Image, Message, Text, ToolResult
from perdure.starter.client.requests import check_attachments
from perdure.workflows.inputs import message_of, request_of
from perdure.workflows.questions import said_of
from tests.pictures import PDF, PNG, png


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


JPEG = _encoded(b"\xff\xd8\xff\xe0 a picture \xff\xd9")
WEBP = _encoded(b"RIFF" + (12).to_bytes(4, "little") + b"WEBPVP8 abcd")

BAD = {
    "no base64": Image(data="half a pict"),
    "empty": Image(data=""),
    "nothing": Image(),
    "another type": Image(data=_encoded(b"a picture")),
    "a page of a proxy": Image(media_type="image/jpeg", data=_encoded(b"<html>")),
    "a cut picture": Image(data=_encoded(png()[:-20])),
    "a cut photograph": Image(media_type="image/jpeg", data=JPEG[:12]),
    "a cut webp": Image(media_type="image/webp", data=_encoded(base64.b64decode(WEBP)[:-2])),
    "a PDF as a picture": Image(data=PDF),
    "a cut PDF": Document(data=_encoded(b"%PDF-1.7\n1 0 obj")),
    "no PDF": Document(data=_encoded(b"Dear Sir")),
    "no blob's name": Image(blob="../etc/passwd"),
}
GOOD = [
    Image(data=PNG),
    Image(media_type="image/png", data=JPEG),
    Image(media_type="image/webp", data=WEBP),
    Image(media_type="image/heic", data=_encoded(b"a picture")),
    Image(blob="a" * 64),
    Document(data=PDF),
    Document(data=_encoded(b"\n\n%PDF-1.4 ... %%EOF")),
    Document(media_type="text/plain", data=_encoded(b"Dear Sir")),
]


@pytest.mark.parametrize("part", BAD.values(), ids=BAD.keys())
def test_unreadable_attachment_is_refused_at_each_door(part: Image | Document) -> None:
    """Start, send, say and the client refuse what no provider could read; a child of a run is not refused."""
    plain = part.model_dump(mode="json")
    request = {"agent": "a", "prompt": [{"kind": "text", "text": "look"}, plain]}
    for enter in (
        lambda: request_of(request),
        lambda: message_of([plain]),
        lambda: said_of({"id": "1", "text": [plain]}),
    ):
        with pytest.raises(ApplicationError, match=f"the {part.kind} '.*' cannot be read: "):
            enter()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        check_attachments([part])
    assert request_of(request, is_child=True).agent == "a"


def test_sender_counts_no_tokens() -> None:
    """What a sender says of a document's tokens is dropped at each door: its word is no upper bound."""
    part = Document(blob="a" * 64, tokens=1)
    plain = part.model_dump(mode="json")
    prompt = request_of({"agent": "a", "prompt": [plain]}).prompt
    _, incoming = said_of({"id": "1", "text": [plain]})
    uncounted = [part.model_copy(update={"tokens": 0})]
    assert [prompt, message_of([plain]).parts, incoming.message.parts] == [uncounted] * 3
    # A parent's activity has read the bytes.
    assert request_of({"agent": "a", "prompt": [plain]}, is_child=True).prompt == [part]


@pytest.mark.parametrize("part", GOOD, ids=repr)
def test_readable_attachment_passes(part: Image | Document) -> None:
    assert problem_with_attachment(part) is None


def test_view_shows_real_types_and_words() -> None:
    """A wrong type is put right; what cannot be read or was refused becomes words; the rest is the same object."""
    photograph, picture = Image(data=JPEG), Image(data=PNG)
    plain = Message.user("only text")
    result = ToolResult(call_id="c", name="n", content=[Text(text="see"), Image(data=_encoded(b"odd"))])
    messages = (
        plain,
        Message.user([photograph, Image(blob="b" * 64), Image(blob="f" * 64)]),
        Message(role="tool", parts=[result]),
        Message.user([picture]),
    )
    shown = readable_messages(messages, {"f" * 64: png(b"kept")}, [attachment_key(picture)])
    assert shown[0] is plain
    assert shown[1].parts[0] == Image(media_type="image/jpeg", data=JPEG)
    assert "its bytes are not in the blob store, or damaged there" in shown[1].text
    assert shown[1].parts[2] == Image(blob="f" * 64)
    assert "its bytes are not image/png" in shown[2].tool_results[0].text
    assert "the provider has refused it" in shown[3].text
    assert newest_attachments(messages) == tuple(
        attachment_key(part)
        for part in (photograph, Image(blob="b" * 64), Image(blob="f" * 64), result.content[1], picture)
        if isinstance(part, Image)
    )
