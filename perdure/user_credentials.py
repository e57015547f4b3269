"""Credentials of users: what a tool needs to act for somebody elsewhere, such as a token.

    @credentials
    async def github(request: CredentialRequest) -> Credentials:
        token = await vault.token_of(request.user)
        return Credentials(token.value, expires_at=token.expires_at)

It stands in the agent's file. The worker asks it when a tool asks for credentials, and keeps the answer in memory until
it expires. No history, log or model sees it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from perdure.errors import DefinitionError


@dataclass(frozen=True, kw_only=True)
class CredentialRequest:
    """Facts about the call of a tool that asks for credentials."""

    user: str | None
    """User on whose behalf the run acts."""
    tool: str
    agent: str
    run_id: str
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values from the run's request."""
    resources: Any = field(default=None, repr=False)
    """Value of the worker's `lifespan`; None without one."""


@dataclass(frozen=True)
class Credentials:
    """Credentials of a user for a tool."""

    value: Any = field(repr=False)
    """What the tool gets: a text, or an object that holds several."""
    expires_at: datetime | None = None
    """Time from which on it is not used again, with a zone. None: it is used for one call."""

    def __post_init__(self) -> None:
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise DefinitionError("Credentials: expires_at needs a time zone, such as datetime.now(UTC)")


@dataclass(frozen=True, eq=False)
class CredentialsProvider:
    """Function that gives credentials. Made by `credentials`."""

    function: Callable[[CredentialRequest], Credentials | Awaitable[Credentials]] = field(repr=False)
    name: str


@dataclass(frozen=True)
class CredentialsByMember:
    """Providers of a worker that serves several files, by the agents of each."""

    providers: Mapping[str, CredentialsProvider]


def credentials(
    function: Callable[[CredentialRequest], Credentials | Awaitable[Credentials]],
) -> CredentialsProvider:
    """Make the provider of a file's credentials, of a function that may be async.

    Raises:
        DefinitionError: it is no function.

    """
    if not callable(function):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"credentials({function!r}): give a function of a CredentialRequest")
    return CredentialsProvider(function, str(getattr(function, "__name__", type(function).__name__)))
