"""Redaction: no secret of ours in a text that goes to a model, a log or a person."""

import os
import re
from functools import lru_cache

_MASK = "[redacted]"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_LEAST = 8
"""Shorter values are no secrets worth the name, and would blot out ordinary words."""

_PATTERNS = (
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/-]{8,}=*"),
    re.compile(
        r"(?i)(?<![A-Za-z])((?:api[_-]?key|access[_-]?token|token|secret|password|passwd)\s*[=:]\s*)[\"']?[^\s\"'&,;]{6,}"
    ),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)


def redact(text: str) -> str:
    """The text with what looks like a secret, or is one of this process's, masked."""
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


def bounded(text: str, most: int = 4000) -> str:
    """The text, its middle left out when it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
