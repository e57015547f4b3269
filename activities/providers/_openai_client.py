"""Clients of the openai library: addresses and keys. The library is an optional extra."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from perdure.errors import DefinitionError

from ._openai_servers import ServerKeys, address_of
from .keys import KeySource, SdkClients

if TYPE_CHECKING:
    import openai


def import_library() -> Any:
    """Return the openai module.

    Raises:
        DefinitionError: it is not installed.

    """
    try:
        import openai
    except ImportError:
        raise DefinitionError(
            'models of this provider need the openai library: pip install "perdure[openai]"'
        ) from None
    return openai


CHAT_COMPLETIONS: Final = "/chat/completions"
"""Path of a call."""


class ChatClients(Protocol):
    """Clients of the library, by the addresses and keys of a provider."""

    def check(self, base_url: str | None) -> None:
        """Check the library, the address and the key; `base_url` is the one that the agent names, if any.

        Raises:
            DefinitionError: the library or the address is missing.
            ModelError: "authentication": the key is missing.

        """
        ...

    async def get(self, base_url: str | None) -> "openai.AsyncOpenAI":
        """Return the client for a call, with the key that is valid now; raises as `check` does."""
        ...

    def path(self, model: str) -> str:
        """Return the path of a call of chat completions, behind the client's address."""
        ...

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        ...


class OpenAIClients:
    """Clients for the servers of a provider; `base_url` and the key are those that the worker is configured with."""

    def __init__(
        self, provider: str, api_key: KeySource, base_url: str | None, keys: Mapping[str, str] | None
    ) -> None:
        self._provider = provider
        self._base_url = base_url
        self._keys = ServerKeys(provider, api_key, keys)
        self._clients: SdkClients[openai.AsyncOpenAI] = SdkClients(_make_client)

    def check(self, base_url: str | None) -> None:
        """Check as `ChatClients.check` does."""
        import_library()
        self._keys.check(self._address(base_url))

    async def get(self, base_url: str | None) -> "openai.AsyncOpenAI":
        """Return the client for a call, as `ChatClients.get` does."""
        address = self._address(base_url)
        return self._clients.get(address, await self._keys.read(address))

    def path(self, model: str) -> str:
        """Return the path as `ChatClients.path` does."""
        return CHAT_COMPLETIONS

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        await self._clients.aclose()

    def _address(self, base_url: str | None) -> str | None:
        return base_url or self._base_url or address_of(self._provider)


def _make_client(address: str | None, key: str) -> "openai.AsyncOpenAI":
    client: openai.AsyncOpenAI = import_library().AsyncOpenAI(
        api_key=key,
        base_url=address,
        max_retries=0,  # Temporal retries, and its retries are seen in history
    )
    return client
