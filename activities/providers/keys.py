"""Keys of providers: given in code, read from a file, or from the environment.

A key is looked up anew for each call, so that a renewed one is used by the next call and not by the next worker.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar

from perdure.errors import ErrorKind, ModelError

from ..content.redact import register_secret
from ..traffic.transient_errors import is_transient
from .env_file import EnvFileKey

KeySource = str | EnvFileKey | Callable[[], str | None] | None
"""Key, or a function that gives the key of the moment: from a vault, or a token of an identity service."""

_FILE_SUFFIX: Final = "_FILE"


class ProviderKey:
    """Key of a provider: the given one, else that of the first variable that is set, `NAME_FILE` before `NAME`."""

    def __init__(self, title: str, given: KeySource, *variables: str) -> None:
        self._title = title
        self._given = given
        self._variables = variables

    def find(self) -> str | None:
        """Return the key, or None.

        Raises:
            ModelError: its file or function fails; "connection" when the function was not answered.

        """
        match self._given:
            case str() as key:
                return key or None
            case EnvFileKey() as key:
                return key.read()
            case None:
                found = (_read_variable(self._title, name) for name in self._variables)
                return next((key for key in found if key), None)
            case function:
                return _call(self._title, function)

    def require(self) -> str:
        """Return the key.

        Raises:
            ModelError: "authentication" when there is none, or as `find` does.

        """
        key = self.find()
        if not key:
            raise ModelError("authentication", self._advice())
        return key

    def check(self) -> None:
        """Check that there is a key. A function is not called: it may have to wait for a service.

        Raises:
            ModelError: as `require` does.

        """
        if not callable(self._given):
            self.require()

    async def read(self) -> str:
        """Return the key for a call, without holding up the event loop; raises as `require` does."""
        return await asyncio.to_thread(self.require) if callable(self._given) else self.require()

    async def read_optional(self) -> str | None:
        """Return the key for a call, or None; raises as `find` does."""
        return await asyncio.to_thread(self.find) if callable(self._given) else self.find()

    def _advice(self) -> str:
        if callable(self._given) or not self._variables:
            return f"no key for {self._title}: the function that gives it gives none"
        name = self._variables[0]
        return (
            f"no key for {self._title}: set {name} in the worker's environment and restart it, "
            f"or name a file in {name}{_FILE_SUFFIX}"
        )


def _call(title: str, function: Callable[[], str | None]) -> str | None:
    try:
        key = function()
    except ModelError:
        raise
    except Exception as error:
        # Libraries for identities name their lost connections so.
        lost = is_transient(error) or type(error).__name__ in ("ServiceRequestError", "TransportError")
        kind: ErrorKind = "connection" if lost else "authentication"
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(kind, f"no key for {title}: its function failed: {reason}") from None
    return _register(key)


def _read_variable(title: str, name: str) -> str | None:
    path = os.environ.get(f"{name}{_FILE_SUFFIX}")
    if not path:
        return os.environ.get(name)
    try:
        return _register(Path(path).expanduser().read_text().strip())
    except (OSError, UnicodeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(
            "authentication", f"no key for {title}: {name}{_FILE_SUFFIX} cannot be read: {reason}"
        ) from None


def _register(key: str | None) -> str | None:
    # No variable holds it, so the redactor would not know it.
    if key:
        register_secret(key)
    return key


class _SdkClient(Protocol):
    """Client of a provider's library, as those of Anthropic and OpenAI have it."""

    def with_options(self, *, api_key: str) -> Self:
        """Return a client with another key, and the same connections."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


C = TypeVar("C", bound=_SdkClient)


class SdkClients(Generic[C]):
    """Clients of a provider's library, one an address; a renewed key goes into the next call."""

    def __init__(
        self, make: Callable[[str | None, str], C], renew: Callable[[C, str], C] | None = None
    ) -> None:
        self._make = make
        self._renew = renew or _with_key
        self._clients: dict[str | None, tuple[str, C]] = {}

    def get(self, address: str | None, key: str) -> C:
        """Return the client for that address with that key, made on first use."""
        known = self._clients.get(address)
        if known is None:
            client = self._make(address, key)
        elif known[0] != key:
            client = self._renew(known[1], key)
        else:
            return known[1]
        self._clients[address] = key, client
        return client

    async def aclose(self) -> None:
        """Close the connections of all clients."""
        for _, client in self._clients.values():
            await client.close()
        self._clients.clear()


def _with_key(client: C, key: str) -> C:
    return client.with_options(api_key=key)
