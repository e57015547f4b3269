"""Redaction: no secret of ours in a text that goes to a model, a log or a person."""

import os
import re
from functools import lru_cache

_MASK = "[redacted]"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_LEAST = 8
"""Shorter values are no secrets worth the name, and would blot out ordinary words."""

_NAMES = (
    r"(?:api|access|secret|private|auth|account|signing|encryption)[_-]?key(?:[_-]?id)?"
    r"|(?:access|auth|refresh|session|bearer|id|client|app|user|db)?[_-]?(?:token|secret|password)"
    r"|passwd|passphrase|credentials?"
)
"""Words before a '=' or ':' that say that a secret follows."""

# Each begins where no word goes on, so that no text is read again and again: the text may be anything.
_PATTERNS = (
    re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
    re.compile(r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:github_pat_|glpat-|hf_|npm_|pypi-)[A-Za-z0-9_-]{20,}"),
    re.compile(r"(?<![A-Za-z0-9])xox[abeprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)"),
    re.compile(r"(?i)(?<![A-Za-z])((?:bearer|basic)[ \t]{1,8})(?=\S*[0-9=])[A-Za-z0-9._~+/-]{8,}=*"),
    re.compile(rf"(?i)(?<![A-Za-z])((?:{_NAMES})[\"']?[ \t]{{0,8}}[=:][ \t]{{0,8}}[\"']?)[^\s\"'&,;]{{6,}}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)


def redact(text: str) -> str:
    """The text with what looks like a secret, or is one of this process's, masked."""
    text = whole(text)
    for value in _own_secrets(tuple(sorted(os.environ.items()))):
        text = text.replace(value, _MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found.group(1) if found.re.groups else "") + _MASK, text)
    return text


@lru_cache(maxsize=4)
def _own_secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Values of environment variables whose names say secret, longest first."""
    values = {value for name, value in environment if _SECRET_NAME.search(name) and len(value) >= _LEAST}
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def whole(text: str) -> str:
    """The text with halves of characters joined, or marked as lost: JSON and UTF-8 cannot hold them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def bounded(text: str, most: int = 4000) -> str:
    """The text, its middle left out when it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
