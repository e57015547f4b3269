"""Values of an MCP server's definition: `${NAME}` becomes the variable, where and when it is needed.

Every value that is put into a header, and every one whose variable or key is named like a secret, is masked in all
that leaves an activity.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from perdure.errors import ModelError
from perdure.mcp import HeaderValue, McpServer

from ..content.redact import is_secret_name, register_secret
from ..providers.keys import ProviderKey
from .errors import McpNotReady

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ENV_FILE: Final = Path(".env")
_SHORTEST_SECRET: Final = 8
"""Shorter values are not masked: they would blot out ordinary words."""


def variables_of(server: McpServer) -> list[str]:
    """Return the names of the variables that the definition names."""
    return sorted({name for text in _texts(server) for name in _VARIABLE.findall(text)})


def _texts(server: McpServer) -> Iterable[str]:
    yield server.url or ""
    yield from server.words
    yield from server.env.values()
    yield from (value for value in server.headers.values() if isinstance(value, str))


def missing_variables(server: McpServer) -> list[str]:
    """Return the variables that the definition names and that are not set."""
    return [name for name in variables_of(server) if _find(name) is None]


def fill(server: McpServer, text: str, *, key: str = "", is_secret: bool = False) -> str:
    """Return the text with the variables' values; `key` is the name of what gets it.

    Raises:
        McpNotReady: a variable is not set; the message names it.

    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        value = _find(name)
        if value is None:
            raise McpNotReady(f"MCP server {server.name!r}: {name} is not set in the worker's environment")
        if (is_secret or is_secret_name(name) or is_secret_name(key)) and len(value) >= _SHORTEST_SECRET:
            register_secret(value)
        return value

    return _VARIABLE.sub(value_of, text)


def header_of(server: McpServer, name: str, value: HeaderValue) -> str | None:
    """Return the header's value of the moment; None leaves the header out. May block, if the value is a function.

    Raises:
        McpNotReady: a variable is not set, or the function fails.

    """
    if isinstance(value, str):
        return fill(server, value, key=name, is_secret=True)
    try:
        found = value()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise McpNotReady(
            f"MCP server {server.name!r}: the value of header {name!r} fails: {reason}"
        ) from None
    if found is not None and len(found) >= _SHORTEST_SECRET:
        register_secret(found)
    return found


def _find(name: str) -> str | None:
    """Return the variable's value: of the environment, of the file that NAME_FILE names, or of `.env`."""
    try:
        found = ProviderKey(name, None, name).find()
    except ModelError:  # its file cannot be read
        found = None
    if found is not None:
        return found
    try:
        return dotenv_values(_ENV_FILE).get(name)
    except (OSError, UnicodeError):
        return None
