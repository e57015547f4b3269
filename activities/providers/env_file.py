"""Keys of the settings that stand in `.env`: the file is read again when it has changed."""

import os
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

_FILE: Final = Path(".env")


class EnvFileKey:
    """Key that `.env` gives under a variable's name; the last that could be read counts."""

    def __init__(self, variable: str, value: str) -> None:
        self._variable = variable
        self._value = value
        self._seen = _signature()

    def read(self) -> str:
        """Return the key that stands in the file now."""
        if (now := _signature()) != self._seen:
            self._seen = now
            self._value = _read(self._variable) or self._value
        return self._value


def key_of_setting(variable: str, value: str) -> str | EnvFileKey:
    """Return the key of a setting: one that is read again where it came from `.env`, and not from code."""
    in_file = not os.environ.get(variable) and _read(variable) == value
    return EnvFileKey(variable, value) if in_file else value


def _read(variable: str) -> str | None:
    try:
        # Settings take the name in any case.
        return next((value for name, value in dotenv_values(_FILE).items() if name.upper() == variable), None)
    except (OSError, UnicodeError):
        return None


def _signature() -> tuple[int, int, int] | None:
    try:
        found = _FILE.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
