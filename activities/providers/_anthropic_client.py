"""Clients of the anthropic library: addresses and keys."""

import anthropic

from .keys import KeySource, ProviderKey, SdkClients


class AnthropicClients:
    """Clients by address; the key is the given one, or comes from the environment."""

    def __init__(self, api_key: KeySource, base_url: str | None) -> None:
        self._base_url = base_url
        self._key = ProviderKey("Anthropic", api_key, "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
        self._clients: SdkClients[anthropic.AsyncAnthropic] = SdkClients(_make_client)

    def check(self) -> None:
        """Check the key.

        Raises:
            ModelError: "authentication": it is missing.

        """
        self._key.check()

    async def get(self, base_url: str | None) -> anthropic.AsyncAnthropic:
        """Return the client for a call, with the key that is valid now; raises as `check` does."""
        return self._clients.get(base_url or self._base_url, await self._key.read())

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        await self._clients.aclose()


def _make_client(address: str | None, key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        # An API key and a token of an identity service are sent alike.
        api_key=key,
        base_url=address,
        max_retries=0,  # Temporal retries, and its retries are seen in history
        open_telemetry=False,  # the activity has a span of its own for the call
    )
