"""Addresses of models: the worker's own keys go only to hosts that its own agents or settings name.

A run brings its spec along, and with it the addresses of its models. The worker made that spec, or the run's parent
pinned it. Should anything else ever get into it, the worker still gives no key to a host that nobody here has named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from perdure.agent import Agent
from perdure.errors import ModelError
from perdure.model import ModelConfig

_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port of an address: what decides who gets a key, and whether others can read it."""

    scheme: str
    host: str
    port: int | None


def origin_of(address: str) -> Origin:
    """Return the origin of an address.

    Raises:
        ValueError: it is no http or https address with a host.

    """
    parts = urlsplit(address)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{address!r} is no http or https address")
    return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])


@dataclass(frozen=True, kw_only=True)
class KnownAddresses:
    """Origins that the worker's agents and settings name."""

    by_provider: frozenset[tuple[str, Origin]] = frozenset()
    """Of agents: a key goes to the host that an agent names for that very provider."""
    of_settings: frozenset[Origin] = frozenset()

    def check(self, config: ModelConfig) -> None:
        """Check that the worker's keys may go to the model's address.

        Raises:
            ModelError: "authentication": nobody here has named that host. The run parks.

        """
        address = config.options.get("base_url")
        if address is None:  # the provider's own, or that of the worker's settings
            return
        try:
            origin = origin_of(str(address))
        except ValueError as error:
            raise ModelError("authentication", f"{config.name}: base_url: {error}") from None
        if origin in self.of_settings or (config.provider, origin) in self.by_provider:
            return
        raise ModelError(
            "authentication",
            f"{config.name}: no agent on this worker has its base_url at {origin.scheme}://{origin.host}, so the "
            "worker's key does not go there; name the address in PERDURE_MODEL_HOSTS, or redrive the run with "
            "the newest agent",
        )


def known_addresses(agents: Iterable[Agent], hosts: Iterable[str] = ()) -> KnownAddresses:
    """Return the addresses that these agents name, and those of the settings."""
    named = (
        (config.provider, str(config.options["base_url"]))
        for agent in agents
        for config in agent.all_models
        if config.options.get("base_url") is not None
    )
    return KnownAddresses(
        by_provider=frozenset((provider, found) for provider, url in named if (found := _origin(url))),
        of_settings=frozenset(origin_of(host) for host in hosts),
    )


def _origin(address: str) -> Origin | None:
    try:
        return origin_of(address)
    except ValueError:  # the provider says so, when the agent is checked
        return None
