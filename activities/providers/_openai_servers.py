"""Servers that speak OpenAI's chat completions: their addresses, their keys, and their habits."""

import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from perdure.errors import DefinitionError

from .addresses import Origin, origin_of
from .keys import KeySource, ProviderKey

_NO_KEY: Final = "none"
"""Key for servers that need none: the library wants one."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Facts about a server, by its provider's name."""

    title: str
    address: str | None
    """Address of its API. None: the library's own, or one that the agent or the worker names."""
    needs_key: bool = True
    counts_unasked: bool = False
    """True: it counts the tokens of each stream, and refuses to be asked for it."""


SERVERS: Final[Mapping[str, Server]] = {
    "openai": Server(title="OpenAI", address=None),
    "ollama": Server(title="Ollama", address="http://localhost:11434/v1", needs_key=False),
    "vllm": Server(title="vLLM", address="http://localhost:8000/v1", needs_key=False),
    "compatible": Server(title="the server", address=None, needs_key=False),
    "lmstudio": Server(title="LM Studio", address="http://localhost:1234/v1", needs_key=False),
    "deepseek": Server(title="DeepSeek", address="https://api.deepseek.com/v1"),
    "fireworks": Server(title="Fireworks", address="https://api.fireworks.ai/inference/v1"),
    "groq": Server(title="Groq", address="https://api.groq.com/openai/v1"),
    "mistral": Server(title="Mistral", address="https://api.mistral.ai/v1", counts_unasked=True),
    "openrouter": Server(title="OpenRouter", address="https://openrouter.ai/api/v1"),
    "together": Server(title="Together", address="https://api.together.xyz/v1"),
    "xai": Server(title="xAI", address="https://api.x.ai/v1"),
}
"""Servers that are known by name. Any other provider's name needs an address."""


def server_of(provider: str) -> Server:
    """Return what is known of a provider's server; of an unknown one nothing, and it may need no key."""
    return SERVERS.get(provider) or Server(title=provider, address=None, needs_key=False)


def address_of(provider: str) -> str | None:
    """Return the address of a provider that is configured no other; None where the library knows it.

    Raises:
        DefinitionError: the provider is not known here.

    """
    match provider:
        case "openai":
            return None
        case "ollama":
            return ollama_address(os.environ.get("OLLAMA_HOST", ""))
        case _ if address := os.environ.get(f"{_variable(provider)}_BASE_URL") or server_of(provider).address:
            return address
        case _:
            raise DefinitionError(
                f'{provider!r} needs an address: set options={{"base_url": "https://..."}}, '
                f"or {_variable(provider)}_BASE_URL for the worker"
            )


def ollama_address(host: str) -> str:
    """Return the API's address for OLLAMA_HOST, read as Ollama itself reads it.

    It may lack the scheme, the host, the port or the path. Source: `envconfig.Host` of Ollama.
    """
    host = host.strip().strip("\"'")
    scheme, separator, rest = host.partition("://")
    if not separator:
        # Its cloud is the only server that is reached by TLS unasked.
        scheme, rest = ("https", "ollama.com:443") if host == "ollama.com" else ("http", host)
    default = {"http": 80, "https": 443}.get(scheme if separator else "", 11434)
    authority, _, path = rest.partition("/")
    name, port = _split_authority(authority)
    path = path.strip("/")
    return f"{scheme}://{_reachable(name)}:{_port(port, default)}{'/' if path else ''}{path}/v1"


def _split_authority(authority: str) -> tuple[str, str]:
    """Return host and port, each of which may be missing; an IPv6 address with a port has brackets."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(authority.strip("[]"))), ""
    name, _, port = authority.rpartition(":") if ":" in authority else (authority, "", "")
    return name.strip("[]"), port


def _reachable(name: str) -> str:
    # A server listens on these addresses, but is not reached there.
    if name in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return "localhost"
    return f"[{name}]" if ":" in name else name


def _port(text: str, default: int) -> int:
    # A port that is none is passed over, as Ollama does.
    return int(text) if text.isascii() and text.isdecimal() and int(text) <= 65_535 else default


class ServerKeys:
    """Keys of a provider's servers: one of its own for an address that the worker's settings name, else the one."""

    def __init__(self, provider: str, given: KeySource, by_address: Mapping[str, str] | None = None) -> None:
        server = server_of(provider)
        self._needs_key = server.needs_key
        self._common = ProviderKey(server.title, given, f"{_variable(provider)}_API_KEY")
        self._by_origin: dict[Origin, str] = {
            origin_of(address): key for address, key in (by_address or {}).items()
        }

    def check(self, address: str | None) -> None:
        """Check that there is a key for that address.

        Raises:
            ModelError: "authentication" where one is needed and missing.

        """
        if self._needs_key and self._key_of(address) is None:
            self._common.check()

    async def read(self, address: str | None) -> str:
        """Return the key for that address; raises as `check` does."""
        if (key := self._key_of(address)) is not None:
            return key
        if self._needs_key:
            return await self._common.read()
        # OpenAI's own key must not leak to another server: the library would take it from the environment.
        return await self._common.read_optional() or _NO_KEY

    def _key_of(self, address: str | None) -> str | None:
        with suppress(ValueError):
            return self._by_origin.get(origin_of(address or ""))
        return None


def _variable(provider: str) -> str:
    return provider.upper().replace("-", "_")
