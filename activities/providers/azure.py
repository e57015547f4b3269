"""Adapter for Azure OpenAI: chat completions of a deployment, under Azure's addresses, keys and tokens."""

import os
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from perdure.errors import DefinitionError

from ._openai_client import CHAT_COMPLETIONS, import_library
from .keys import KeySource, ProviderKey, SdkClients
from .openai import OpenAIModel

if TYPE_CHECKING:
    import openai


class AzureModel(OpenAIModel):
    """Deployments of Azure OpenAI: the model's name is that of the deployment.

    `endpoint` is that of the resource, such as `https://shop.openai.azure.com`. `token` is a function that gives a
    token of Entra ID, in place of an `api_key`: `get_bearer_token_provider` of the package azure-identity makes one.
    With an `api_version` the API of that date is called, else the one without dates.
    """

    def __init__(
        self,
        api_key: KeySource = None,
        endpoint: str | None = None,
        *,
        token: KeySource = None,
        api_version: str | None = None,
    ) -> None:
        super().__init__(api_key, endpoint, "azure")
        self._clients = AzureClients(api_key, token, endpoint, api_version)


class AzureClients:
    """Clients of the openai library for Azure's addresses."""

    def __init__(
        self, api_key: KeySource, token: KeySource, endpoint: str | None, api_version: str | None
    ) -> None:
        self._endpoint = endpoint
        self._api_version = api_version
        self._key = ProviderKey("Azure OpenAI", api_key, "AZURE_OPENAI_API_KEY")
        self._token = ProviderKey("Azure OpenAI", token, "AZURE_OPENAI_AD_TOKEN")
        self._takes_token = token is not None
        self._by_key: SdkClients[openai.AsyncOpenAI] = SdkClients(self._make_client)
        self._by_token: SdkClients[openai.AsyncOpenAI] = SdkClients(self._make_token_client, _renew_token)

    def check(self, base_url: str | None) -> None:
        """Check as `ChatClients.check` does."""
        import_library()
        self._address(base_url)
        if not self._takes_token and not self._token.find():
            self._key.check()

    async def get(self, base_url: str | None) -> "openai.AsyncOpenAI":
        """Return the client for a call, as `ChatClients.get` does; it brings a key or a token."""
        address = self._address(base_url)
        if self._takes_token or not self._key.find():
            token = await (self._token.read() if self._takes_token else self._token.read_optional())
            if token:
                return self._by_token.get(address, token)
        return self._by_key.get(address, await self._key.read())

    def path(self, model: str) -> str:
        """Return the path as `ChatClients.path` does: the dated API names the deployment in it."""
        deployment = "" if self._api_version is None else f"/deployments/{quote(model, safe='')}"
        return f"{deployment}{CHAT_COMPLETIONS}"

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        await self._by_key.aclose()
        await self._by_token.aclose()

    def _address(self, base_url: str | None) -> str:
        address = base_url or self._endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not address:
            raise DefinitionError(
                "azure needs the address of your resource: set AZURE_OPENAI_ENDPOINT for the worker, "
                'or options={"base_url": "https://NAME.openai.azure.com"}'
            )
        return address.rstrip("/")

    def _make_client(self, address: str | None, key: str) -> "openai.AsyncOpenAI":
        assert address is not None
        library = import_library()
        client: openai.AsyncOpenAI
        if self._api_version is None:
            client = library.AsyncOpenAI(api_key=key, base_url=_undated_address(address), max_retries=0)
        else:
            client = library.AsyncAzureOpenAI(
                api_key=key, azure_endpoint=address, api_version=self._api_version, max_retries=0
            )
        return client

    def _make_token_client(self, address: str | None, token: str) -> "openai.AsyncOpenAI":
        assert address is not None
        if self._api_version is None:
            # Here a token goes where a key goes.
            return self._make_client(address, token)
        client: openai.AsyncOpenAI = import_library().AsyncAzureOpenAI(
            azure_ad_token=token, azure_endpoint=address, api_version=self._api_version, max_retries=0
        )
        return client


def _renew_token(client: "openai.AsyncOpenAI", token: str) -> "openai.AsyncOpenAI":
    if isinstance(client, import_library().AsyncAzureOpenAI):
        renewed: openai.AsyncOpenAI = cast("Any", client).with_options(azure_ad_token=token)
        return renewed
    return client.with_options(api_key=token)


def _undated_address(address: str) -> str:
    """Return the address of the API without dates; one with a path is complete."""
    return address if urlsplit(address).path else f"{address}/openai/v1"
