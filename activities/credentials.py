"""Credentials in a worker: asked of the provider, kept until they expire, and masked in all that leaves the worker."""

import asyncio
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from cachetools import LRUCache
from pydantic import SecretStr

from perdure.errors import DefinitionError
from perdure.user_credentials import CredentialRequest, Credentials, CredentialsByMember, CredentialsProvider

from .content.redact import register_secret
from .threads import FunctionThreads, call_function

_MARGIN: Final = timedelta(seconds=30)
"""Time before they expire from which on credentials are asked for anew: a call takes time too."""
_MOST_KEPT: Final = 10_000
_SHORTEST_SECRET: Final = 8
_DEEPEST: Final = 3

_Key = tuple[str, str | None, str]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    credentials: Credentials | None = None


class WorkerCredentials:
    """Credentials of the users whose runs this worker serves.

    Args:
        given: a provider for all members, or providers by member; None for none.
        members: names of the members.
        threads: threads for providers that are not async.
        clock: the time now.

    """

    def __init__(
        self,
        given: CredentialsProvider | CredentialsByMember | None = None,
        members: Iterable[str] = (),
        *,
        threads: FunctionThreads | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        if isinstance(given, CredentialsByMember):
            self._providers = dict(given.providers)
        else:
            self._providers = {} if given is None else dict.fromkeys(members, given)
        self._threads = threads or FunctionThreads()
        self._clock = clock
        self._kept: LRUCache[_Key, _Entry] = LRUCache(_MOST_KEPT)

    async def ask(self, request: CredentialRequest, *, fresh: bool = False) -> Any:
        """Return the credentials' value; calls of the same user and tool at the same time ask once.

        `fresh`: the kept ones are of no use, for the other side refuses them.

        Raises:
            DefinitionError: the agent's file has no provider, or it gives something else.
            Exception: what the provider raises.

        """
        provider = self._providers.get(request.agent)
        if provider is None:
            raise DefinitionError(
                f"tool {request.tool!r} asks for credentials, and the file of agent {request.agent!r} has no "
                "@credentials function"
            )
        entry = self._kept.setdefault((request.agent, request.user, request.tool), _Entry())
        refused = entry.credentials if fresh else None
        async with entry.lock:
            kept = entry.credentials
            if kept is None or kept is refused or not self._is_valid(kept):
                entry.credentials = kept = await self._ask_provider(provider, request)
            if kept.expires_at is None:
                entry.credentials = None
            return kept.value

    def _is_valid(self, kept: Credentials) -> bool:
        return kept.expires_at is not None and self._clock() < kept.expires_at - _MARGIN

    async def _ask_provider(self, provider: CredentialsProvider, request: CredentialRequest) -> Credentials:
        function = provider.function
        is_async = inspect.iscoroutinefunction(function)
        name = f"credentials:{provider.name}"
        given = await call_function(self._threads, name, partial(function, request), is_async=is_async)
        if not isinstance(given, Credentials):
            raise DefinitionError(
                f"credentials function {provider.name} must give Credentials, not a {type(given).__name__}"
            )
        for secret in _texts_in(given.value):
            register_secret(secret)
        return given


def _texts_in(value: Any, depth: int = 0) -> Iterable[str]:
    """Yield the texts that a value holds and that are long enough to be told from words."""
    if isinstance(value, str):
        yield from [value] if len(value) >= _SHORTEST_SECRET else []
    elif depth < _DEEPEST:
        for part in _parts_of(value):
            yield from _texts_in(part, depth + 1)


def _parts_of(value: Any) -> Iterable[Any]:
    """Return what an object holds: items, fields, or the text of a `SecretStr`."""
    whole: Any = value
    match value:
        case SecretStr():
            return [value.get_secret_value()]
        case dict():
            return list(whole.values())
        case list() | tuple():
            return list(whole)
        case _ if is_dataclass(whole):
            return [getattr(whole, each.name) for each in fields(whole)]
        case _:
            return list(getattr(whole, "__dict__", {}).values())
