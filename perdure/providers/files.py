"""Images and documents as a model takes them: under their real type, or in words. Pure."""

import base64
from collections.abc import Iterable, Mapping, Sequence

from perdure.media import decode, in_words, problem_with_bytes
from perdure.media_types import sniff_media_type
from perdure.messages import Document, Image, Message, Text, media_of
from perdure.tokens import image_size

from .capabilities import Capabilities

_MOST_NAME_CHARS = 120
_TEXT_START = 4096
_HEADER = 48 * 1024
_BEGINNINGS = (
    ("application/vnd.openxmlformats", b"PK"),
    (("application/msword", "application/vnd.ms-excel"), b"\xd0\xcf\x11\xe0"),
)
"""First bytes of documents, by their types; those of `perdure.media` beside."""


def sendable_file(
    part: Image | Document, blobs: Mapping[str, bytes], capabilities: Capabilities, provider: str
) -> Image | Document | Text:
    """Return the file as the model reads it, or the words that it reads in its place."""
    if part.blob is not None and part.blob not in blobs:
        return part  # a fault of the caller, which the adapter reports
    try:
        data = blobs[part.blob] if part.blob is not None else decode(part)
    except ValueError as error:
        return Text(text=in_words(part, str(error)))
    if problem := problem_with_bytes(part, data) or _problem_with_document(part, data):
        return Text(text=in_words(part, problem))
    typed = _with_real_type(part, data)
    if not takes_type(typed, capabilities):
        return Text(
            text=in_words(part, f"{provider} does not read {typed.kind}s of type {typed.media_type!r}")
        )
    if problem := _problem_with_size(typed, data, capabilities, provider):
        return Text(text=in_words(part, problem))
    return typed


def _problem_with_document(part: Image | Document, data: bytes) -> str | None:
    if isinstance(part, Image):
        return None if data else "it is empty"
    if not data.strip():
        return "it is empty"
    real = sniff_media_type(data)
    if real is not None and real.startswith("image/"):
        return f"its bytes are {real}: send it as an Image"
    begin = next((magic for types, magic in _BEGINNINGS if part.media_type.startswith(types)), b"")
    if not data.startswith(begin):
        return f"its bytes are not {part.media_type}"
    if part.media_type.startswith("text/") and b"\0" in data[:_TEXT_START]:
        return "its bytes are no text"
    return None


def takes_type(part: Image | Document, capabilities: Capabilities) -> bool:
    """Check whether the model reads files of that type."""
    return matches(part.media_type, capabilities.images if part.kind == "image" else capabilities.documents)


def matches(media_type: str, known: Iterable[str]) -> bool:
    """Check whether a media type is among those; "text/*" stands for all of text."""
    kind = media_type.partition("/")[0]
    return any(each in (media_type, f"{kind}/*") for each in known)


def hidden_files(
    messages: Sequence[Message], capabilities: Capabilities, blobs: Mapping[str, bytes]
) -> dict[int, tuple[int, int]]:
    """Return how many images and documents, from the first, each message must not show: newer ones fill the request.

    The oldest go, some at a time: each change of an old message makes the provider's cache useless.
    """
    files: list[tuple[int, Image | Document]] = [
        (at, part)
        for at, message in enumerate(messages)
        if message.has_attachments
        for part in media_of(message)
    ]
    if not files:
        return {}
    kinds = [part.kind for _, part in files]
    oldest = _oldest(
        [_size(part, capabilities, blobs) for _, part in files], capabilities.most_bytes_of_files
    )
    images = _oldest([1] * kinds.count("image"), _most_images(files, capabilities, blobs))
    documents = _oldest([1] * kinds.count("document"), capabilities.most_documents)
    left = {
        "image": max(images, kinds[:oldest].count("image")),
        "document": max(documents, kinds[:oldest].count("document")),
    }
    hidden: dict[int, tuple[int, int]] = {}
    for at, part in files:
        if left[part.kind]:
            left[part.kind] -= 1
            counted = hidden.get(at, (0, 0))
            is_image = part.kind == "image"
            hidden[at] = (counted[0] + is_image, counted[1] + (not is_image))
    return hidden


def _most_images(
    files: Sequence[tuple[int, Image | Document]], capabilities: Capabilities, blobs: Mapping[str, bytes]
) -> int | None:
    """Return the most images of the request: fewer where one of them is large."""
    most, side = capabilities.most_large_images, capabilities.most_large_side
    images = [part for _, part in files if isinstance(part, Image)]
    if most is None or side is None or len(images) <= most:
        return capabilities.most_images
    sizes = [image_size(_beginning(part, blobs)) for part in images]
    is_large = any(size is not None and max(size) > side for size in sizes)
    return most if is_large else capabilities.most_images


def _beginning(part: Image, blobs: Mapping[str, bytes]) -> bytes:
    """Return the first bytes of an image, which tell its size."""
    if part.blob is not None:
        return blobs.get(part.blob, b"")[:_HEADER]
    try:
        return base64.b64decode((part.data or "")[: _HEADER // 3 * 4])
    except ValueError:
        return b""


def _oldest(weights: Sequence[int], most: int | None) -> int:
    """Return how many of the oldest must go so that the weights of the others are at most so much together."""
    if most is None or sum(weights) <= most:
        return 0
    step = max(1, most // 4)
    excess = -(-(sum(weights) - most) // step) * step
    for count, weight in enumerate(weights, 1):
        excess -= weight
        if excess <= 0:
            return count
    return len(weights)


def _size(part: Image | Document, capabilities: Capabilities, blobs: Mapping[str, bytes]) -> int:
    """Return the bytes of a file, or 0 if it stands in words anyway."""
    size = len(blobs.get(part.blob, b"")) if part.blob is not None else len(part.data or "") * 3 // 4
    most = capabilities.most_image_bytes if part.kind == "image" else capabilities.most_document_bytes
    return 0 if most is not None and size > most else size


def _with_real_type(part: Image | Document, data: bytes) -> Image | Document:
    """Return the file under the type that its bytes prove, with a name that can be written."""
    real = sniff_media_type(data)
    plain = part.media_type.partition(";")[0].strip().lower()
    if real is not None and isinstance(part, Document) == (real == "application/pdf"):
        plain = real
    changes = {} if plain == part.media_type else {"media_type": plain}
    if isinstance(part, Document):
        shown = "".join(character if character.isprintable() else " " for character in part.name)
        name = " ".join(shown.split())[:_MOST_NAME_CHARS].strip() or "document"
        changes |= {} if name == part.name else {"name": name}
    return part.model_copy(update=changes) if changes else part


def _problem_with_size(
    part: Image | Document, data: bytes, capabilities: Capabilities, provider: str
) -> str | None:
    is_image = isinstance(part, Image)
    most = capabilities.most_image_bytes if is_image else capabilities.most_document_bytes
    if most is not None and len(data) > most:
        return f"it has {len(data)} bytes, and {provider} reads at most {most}"
    side = capabilities.most_image_side
    size = image_size(data) if is_image and side is not None else None
    if size is not None and side is not None and max(size) > side:
        return f"it has {size[0]} by {size[1]} pixels, and {provider} reads at most {side} a side"
    return None
