"""Texts that may hold anything: made writable, bounded, and free of what looks like a secret. Pure."""

import re

MASK = "[redacted]"

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


def mask_secrets(text: str) -> str:
    """The text, writable, with what looks like a secret masked."""
    text = fix_surrogates(text)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found.group(1) if found.re.groups else "") + MASK, text)
    return text


def fix_surrogates(text: str) -> str:
    """The text with halves of characters joined, or marked as lost: JSON and UTF-8 cannot hold them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def truncate_middle(text: str, most: int = 4000) -> str:
    """The text, its middle left out when it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
