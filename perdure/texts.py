"""Texts of any origin: made safe to write, shortened, and free of what looks like a secret. Pure."""

import re
from typing import Any

MASK = "[redacted]"

_NAMES = (
    r"(?:api|access|secret|private|auth|account|signing|encryption)[_-]?key(?:[_-]?id)?"
    r"|(?:access|auth|refresh|session|bearer|id|client|app|user|db)?[_-]?(?:token|secret|password)"
    r"|passwd|passphrase|credentials?"
)
"""Words that announce a secret when '=' or ':' follows them."""

# Each pattern starts at a boundary of a word, so that matching stays linear whatever the text holds.
_PATTERNS = (
    re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
    re.compile(r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:github_pat_|glpat-|hf_|npm_|pypi-)[A-Za-z0-9_-]{20,}"),
    re.compile(r"(?<![A-Za-z0-9])xox[abeprs]-[A-Za-z0-9-]{10,}"),
    # A web token after a prefix such as "key_", which is kept. The lookahead finds the token's three parts first,
    # so that each beginning of a part is tried once.
    re.compile(
        r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]*+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8})"
        r"([A-Za-z0-9_-]*?)(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    ),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)"),
    re.compile(r"(?i)(?<![A-Za-z])((?:bearer|basic)[ \t]{1,8})(?=\S*[0-9=])[A-Za-z0-9._~+/-]{8,}=*"),
    re.compile(rf"(?i)(?<![A-Za-z])((?:{_NAMES})[\"']?[ \t]{{0,8}}[=:][ \t]{{0,8}}[\"']?)[^\s\"'&,;]{{6,}}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)

_SECRET_FIELD = re.compile(rf"(?i)(?:{_NAMES}|authorization)$")
_PLACE_FIELD = re.compile(r"(?i)(?:page|next|continuation|sync|resume)[_-]?token$")
"""Fields that hold a place in a list, which are called tokens too."""
_SHORTEST_OPAQUE = 16
"""Length from which on the text of a field such as `token` is taken for a secret."""

_READ_ON_IN_BLOB = re.compile(r'read_result\(result="([0-9a-f]{64})"')


def mask_secrets(text: str) -> str:
    """Return the text, safe to write, with everything that looks like a secret masked."""
    text = fix_surrogates(text)
    # A pattern may keep a word before the secret in its first group, such as "password=".
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found.group(1) if found.re.groups else "") + MASK, text)
    return text


def find_secret(value: Any, path: str) -> str | None:
    """Return the path of the first text in a JSON value that looks like a secret, or None.

    `path`: that of the value itself.
    """
    whole: Any = value
    match value:
        case str():
            return path if mask_secrets(value) != fix_surrogates(value) else None
        case list():
            parts = ((f"{path}[{index}]", "", part) for index, part in enumerate(whole))
        case dict():
            parts = ((f"{path}.{name}", str(name), part) for name, part in whole.items())
        case _:
            return None
    for place, name, part in parts:
        if isinstance(part, str) and _is_named_secret(name, part):
            return place
        found = find_secret(part, place)
        if found is not None:
            return found
    return None


def _is_named_secret(name: str, text: str) -> bool:
    """Return whether a field of this name holds a secret: a text that nobody would have written by hand."""
    is_opaque = len(text) >= _SHORTEST_OPAQUE and not any(sign.isspace() for sign in text)
    return is_opaque and _SECRET_FIELD.search(name) is not None and _PLACE_FIELD.search(name) is None


def fix_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates replaced.

    JSON and UTF-8 cannot hold surrogates; a stream cut in the middle of a character leaves them.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def truncate_middle(text: str, most: int = 4000) -> str:
    """Return the text without its middle when it is longer than `most` characters."""
    if len(text) <= most:
        return text
    # Both ends are kept: an error's cause is often in its last line.
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def first_bytes(data: bytes, most: int) -> str:
    """Return the text of the first `most` bytes, without a character that the cut would split."""
    return data[:most].decode(errors="ignore")


def next_piece(data: bytes, offset: int, most: int) -> str:
    """Return the text from that byte on, at most so many bytes, with a note on what follows.

    An offset within a character of UTF-8 moves to the next one.
    """
    while offset < len(data) and data[offset] & 0xC0 == 0x80:
        offset += 1
    piece = first_bytes(data[offset:], most)
    end = offset + len(piece.encode())
    note = "" if end >= len(data) else f"\n[{len(data) - end} bytes follow, from offset {end}]"
    return piece + note if piece else "(nothing there: the result has ended)"


def read_on_call(name: str, offset: int) -> str:
    """Return the call with which the model reads on in a text that was cut: a blob, or another result, of that name."""
    return f'read_result(result="{name}", offset={offset})'


def blobs_to_read_on(text: str) -> list[str]:
    """Return the names of the blobs in which a text says that the model can read on."""
    return _READ_ON_IN_BLOB.findall(text) if "read_result" in text else []


def mark_cut(shown: str, total_bytes: int, advice: str) -> str:
    """Return the beginning of a longer text with a note that says how long it is and what to do."""
    return f"{shown}\n[cut here: {total_bytes} bytes in all; {advice}]"


def describe_error(error: BaseException) -> str:
    """Return what the error says; never raises, whatever the error's `__str__` does."""
    try:
        return str(error)
    except Exception:  # user code: its __str__ may do anything
        return f"({type(error).__name__} has no readable message)"
