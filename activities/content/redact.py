"""Redaction: no secret of this process in a text that goes to a model, a log or a person."""

import os
import re
from functools import lru_cache

from perdure.texts import MASK, fix_surrogates, mask_secrets

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_LEAST = 8
"""Shorter values are no secrets worth the name, and would blot out ordinary words."""


def redact(text: str) -> str:
    """The text with what looks like a secret, or is one of this process's, masked."""
    text = fix_surrogates(text)
    for value in _own_secrets(tuple(sorted(os.environ.items()))):
        text = text.replace(value, MASK)
    return mask_secrets(text)


@lru_cache(maxsize=4)
def _own_secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Values of environment variables whose names say secret, longest first."""
    values = {value for name, value in environment if _SECRET_NAME.search(name) and len(value) >= _LEAST}
    return tuple(sorted(values, key=lambda value: (-len(value), value)))
