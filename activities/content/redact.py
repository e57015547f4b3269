"""Redaction of secrets: the one place through which text leaves an activity.

Theory of operation. Two kinds of text leave an activity. What tells *about* something (errors, notes, logs, reasons)
is redacted: this process's own secrets and all that looks like a secret. What is *content* (replies, results) is
masked: the own secrets alone, because a pattern might change what a model works with.

Own secrets are values, not names: those of the environment, of `.env`, and of the settings. They are masked before
any cut, because a cut may leave a half that no value matches. A text that somebody else has cut may end, or begin, in
the middle of one: such an end is masked too. A stream holds back an end that may become a secret.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

from dotenv import dotenv_values
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from perdure.texts import MASK, describe_error, fix_surrogates, mask_secrets, truncate_middle

_SECRET_NAME: Final = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)")
_PASSWORD_IN_URL: Final = re.compile(r"://[^/\s:@]*:([^/\s]+)@")
_ADDRESS: Final = re.compile(r"https?://[^@\s]*")
_SHORTEST_SECRET: Final = 8
"""Shorter values of secret variables are kept: masking them would blot out ordinary words."""
_SHORTEST_PIECE: Final = 6
"""Characters of a secret that are masked where a text was cut."""
_CUT: Final = re.compile(r"\.\.\.|…")
_MOST_CHARS: Final = 1_000_000
"""Characters of an error that are read: far more than are kept."""

_registered: set[str] = set()
_MOST_RENEWED: Final = 256
"""Renewed keys that are remembered. Tokens of identity services change each hour."""
_renewed: dict[str, None] = {}


def register_secrets(settings: BaseSettings) -> None:
    """Add the secrets of the settings to this process's own: they may come from `.env` or from code."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for secret in value.values() if isinstance(value, dict) else (value,):  # pyright: ignore[reportUnknownVariableType]
            if isinstance(secret, SecretStr):
                _registered.add(secret.get_secret_value())


def register_secret(value: str) -> None:
    """Add a secret that stands in no variable and no setting: a key read from a file, or given by a function."""
    if value in _renewed:
        return
    _renewed[value] = None
    if len(_renewed) > _MOST_RENEWED:
        _renewed.pop(next(iter(_renewed)))


def is_secret_name(name: str) -> bool:
    """Check whether a variable or header of that name holds a secret."""
    return _SECRET_NAME.search(name.upper()) is not None


def redact(text: str) -> str:
    """Return the text with secrets masked: this process's own, pieces of them at a cut, and what looks like one."""
    text = fix_surrogates(text[:_MOST_CHARS])
    own = own_secrets()
    # The longest first: a secret may begin as another does, and a pattern might mask only a part of a secret.
    return mask_secrets(_mask(_mask_pieces(text, own), own))


def redact_and_cut(text: str, most: int = 4000) -> str:
    """Return the redacted text, then shortened: never the other way round."""
    return truncate_middle(redact(text), most)


def redact_error(error: BaseException, most: int = 4000) -> str:
    """Return the error's message for people and models. Never raises."""
    return redact_and_cut(describe_error(error), most)


def mask_own(text: str) -> str:
    """Return the content with this process's own secrets masked, else unchanged."""
    return _mask(text, own_secrets())


def mask_stream(text: str) -> str:
    """Return the beginning of a stream that may be shown: masked, without an end that may become a secret.

    It is a beginning of what it returns for any longer text.
    """
    own = own_secrets()
    end = len(text) - max((_overlap(text, secret, len(secret) - 1) for secret in own), default=0)
    # A secret that is whole is not held back: its end may look like the beginning of another.
    ends = (found.end() for found in _pattern(own).finditer(text) if found.start() < end < found.end())
    return _mask(text[: next(ends, end)], own)


def mask_value(value: Any) -> Any:
    """Return the JSON value with this process's own secrets masked in each text."""
    match value:
        case str():
            return mask_own(value)
        case dict():
            items = cast("dict[str, Any]", value).items()
            return {key: mask_value(inner) for key, inner in items}
        case list():
            return [mask_value(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def own_secrets() -> tuple[str, ...]:
    """Return the secrets of this process, in each form in which a text may hold them; the longest first."""
    file = Path(".env")
    try:
        found = file.stat()
        dotenv = (str(file.absolute()), found.st_mtime_ns, found.st_size)
    except OSError:
        dotenv = None
    return _own_secrets(tuple(sorted(os.environ.items())), dotenv, frozenset((*_registered, *_renewed)))


@lru_cache(maxsize=4)
def _own_secrets(
    environment: tuple[tuple[str, str], ...], dotenv: tuple[str, int, int] | None, registered: frozenset[str]
) -> tuple[str, ...]:
    variables = dict(environment)
    in_file = _read_dotenv(dotenv[0]) if dotenv else dict[str, str]()
    named = [*environment, *in_file.items()]
    values = {*registered, *(value for name, value in named if is_secret_name(name))}
    values |= {
        password for value in (*variables.values(), *values) for password in _PASSWORD_IN_URL.findall(value)
    }
    forms = {form for value in values if _is_secret(value) for form in _forms(value)}
    # Longest first: a secret that contains another must be masked as a whole.
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _read_dotenv(path: str) -> Mapping[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value}
    except (OSError, UnicodeError):
        return {}


def _is_secret(value: str) -> bool:
    # A variable such as SSH_KEY may name a file, and TOKEN_URL an address: these are no secrets.
    is_place = _is_file(value) or _ADDRESS.fullmatch(value)
    return len(value) >= _SHORTEST_SECRET and not is_place


def _is_file(value: str) -> bool:
    try:
        return value.startswith("/") and Path(value).exists()
    except (OSError, ValueError):
        return False  # too long, or with a null byte


def _forms(value: str) -> Iterable[str]:
    """Return the secret as it is, stripped, and as JSON, a URL and Python's `repr` write it."""
    stripped = value.strip()
    forms = (value, stripped, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    return (
        form
        for form in (*forms, quote(stripped, safe=""), repr(stripped)[1:-1])
        if len(form) >= _SHORTEST_SECRET
    )


def _mask(text: str, own: tuple[str, ...]) -> str:
    return _pattern(own).sub(MASK, text)


@lru_cache(maxsize=4)
def _pattern(own: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of any of the secrets; where several begin, of the longest."""
    return re.compile("|".join(map(re.escape, own)) or "(?!)")


def _mask_pieces(text: str, own: tuple[str, ...]) -> str:
    """Mask pieces of secrets where the text was cut: at its ends, and at dots that stand for what is left out."""
    own = tuple(s for s in own if s[:_SHORTEST_PIECE] in text or s[-_SHORTEST_PIECE:] in text)
    if not own:
        return text
    pieces: list[str] = []
    start = 0
    for cut in _CUT.finditer(text):
        pieces += [_mask_ends(text[start : cut.start()], own), cut.group()]
        start = cut.end()
    return "".join([*pieces, _mask_ends(text[start:], own)])


def _mask_ends(text: str, own: tuple[str, ...]) -> str:
    end = max((_overlap(text, secret, len(secret)) for secret in own), default=0)
    if end >= _SHORTEST_PIECE:
        text = text[: len(text) - end] + MASK
    begin = max((_overlap(secret, text, len(secret)) for secret in own), default=0)
    return MASK + text[begin:] if begin >= _SHORTEST_PIECE else text


def _overlap(text: str, secret: str, most: int) -> int:
    """Return how many characters at the text's end are the secret's beginning, at most `most`."""
    for length in range(min(most, len(text), len(secret)), 0, -1):
        if text.endswith(secret[:length]):
            return length
    return 0
