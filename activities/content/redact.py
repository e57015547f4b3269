"""Redaction of secrets from texts that go to a model, a log or a person."""

import os
import re
from functools import lru_cache

from perdure.texts import MASK, fix_surrogates, mask_secrets

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Shorter values of secret variables are kept: masking them would blot out ordinary words."""


def redact(text: str) -> str:
    """Return the text with secrets masked: what looks like one, and secret environment variables."""
    text = fix_surrogates(text)
    # First by value, because a pattern might mask only a part of a known secret.
    for value in _own_secrets(tuple(sorted(os.environ.items()))):
        text = text.replace(value, MASK)
    return mask_secrets(text)


@lru_cache(maxsize=4)
def _own_secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return the values of environment variables whose names say that they are secret, longest first."""
    # Longest first: a secret that contains another must be masked as a whole.
    values = {
        value for name, value in environment if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
    }
    return tuple(sorted(values, key=lambda value: (-len(value), value)))
