"""A picture and a document that can be read, for tests."""

import base64
import struct
import zlib


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(noise: bytes = b"") -> bytes:
    """Return a picture of one red dot; with `noise` as a comment in it."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    chunks = (
        _chunk(b"IHDR", header)
        + _chunk(b"tEXt", b"c\0" + noise)
        + _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks + _chunk(b"IEND", b"")


PNG = base64.b64encode(png()).decode()
PDF = base64.b64encode(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n").decode()
