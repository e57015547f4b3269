"""Credentials of users: asked by the worker at the call, kept until they expire, and in nothing that leaves it."""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import Agent, CredentialRequest, Credentials, DefinitionError, ToolContext, credentials, tool
from perdure.activities.content.redact import mask_own
from perdure.activities.credentials import WorkerCredentials
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, running, says
from perdure.workers.load import load_file
from tests.unit.providers.server import Answer, Stub, stub_server

HOUR = timedelta(hours=1)


@dataclass
class Tokens:
    """A provider that counts, as an identity service would give tokens."""

    expires_in: timedelta | None = HOUR
    asked: list[CredentialRequest] = field(default_factory=list[CredentialRequest])

    async def give(self, request: CredentialRequest) -> Credentials:
        self.asked.append(request)
        await asyncio.sleep(0)
        expires = None if self.expires_in is None else datetime.now(UTC) + self.expires_in
        return Credentials(f"token-{len(self.asked)}-of-{request.user}", expires)


def request(user: str = "ann", name: str = "search") -> CredentialRequest:
    return CredentialRequest(user=user, tool=name, agent="clerk", run_id="r")


def kept_by(tokens: Tokens, **more: Any) -> WorkerCredentials:
    return WorkerCredentials(credentials(tokens.give), ["clerk"], **more)


async def test_they_are_kept_until_they_expire() -> None:
    """One question for each user and tool, however many calls come at once; a new one shortly before they expire."""
    tokens, now = Tokens(), [datetime.now(UTC)]
    kept = kept_by(tokens, clock=lambda: now[0])
    assert await asyncio.gather(*(kept.ask(request()) for _ in range(20))) == ["token-1-of-ann"] * 20
    assert await kept.ask(request("bob")) == "token-2-of-bob"
    assert await kept.ask(request(name="pay")) == "token-3-of-ann"
    assert await kept.ask(request()) == "token-1-of-ann"
    now[0] += HOUR - timedelta(seconds=29)
    assert await kept.ask(request()) == "token-4-of-ann"


async def test_without_expiry_each_call_asks() -> None:
    tokens = Tokens(expires_in=None)
    kept = kept_by(tokens)
    assert [await kept.ask(request()) for _ in range(2)] == ["token-1-of-ann", "token-2-of-ann"]


async def test_refused_ones_are_asked_for_once() -> None:
    """Several calls whose token is refused at once get one new token together."""
    tokens = Tokens()
    kept = kept_by(tokens)
    assert await kept.ask(request()) == "token-1-of-ann"
    assert set(await asyncio.gather(*(kept.ask(request(), fresh=True) for _ in range(5)))) == {
        "token-2-of-ann"
    }


async def test_wrong_providers_are_named() -> None:
    with pytest.raises(DefinitionError, match="the file of agent 'clerk' has no @credentials function"):
        await WorkerCredentials().ask(request())

    def wrong(request: CredentialRequest) -> Any:
        return "a token"

    with pytest.raises(DefinitionError, match="must give Credentials, not a str"):
        await WorkerCredentials(credentials(wrong), ["clerk"]).ask(request())
    with pytest.raises(DefinitionError, match="needs a time zone"):
        Credentials("x", datetime(2026, 12, 1))  # noqa: DTZ001
    with pytest.raises(DefinitionError, match="give a function"):
        credentials("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@dataclass
class Keys:
    access: str
    secret: str


@pytest.mark.parametrize(
    "value", ["one-secret-text", {"key": "one-secret-text"}, Keys("a", "one-secret-text")]
)
async def test_all_that_they_hold_is_masked(value: Any) -> None:
    """Texts of credentials are secrets of the worker, whatever object holds them."""

    def give(request: CredentialRequest) -> Credentials:
        return Credentials(value)

    await WorkerCredentials(credentials(give), ["clerk"]).ask(request())
    assert mask_own("it is one-secret-text!") == "it is [redacted]!"


class Service:
    """An OAuth service and what it protects, on loopback."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub

    async def token(self, request: CredentialRequest) -> Credentials:
        """Refresh the user's token, as OAuth has it."""
        import httpx2

        async with httpx2.AsyncClient() as client:
            answer = (await client.post(f"{self.stub.url}/token", json={"user": request.user})).json()
        return Credentials(
            answer["access_token"], datetime.now(UTC) + timedelta(seconds=answer["expires_in"])
        )


async def test_token_is_renewed_under_a_run() -> None:
    """A token that is refused is renewed within the call; none stands in history, logs, or what the model reads."""
    import httpx2

    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    seen: list[str] = []

    async with stub_server() as stub:
        service = Service(stub)
        for answer in (
            '{"access_token": "first-token-of-ann", "expires_in": 3600}',
            None,
            '{"access_token": "second-token-of-ann", "expires_in": 3600}',
            '{"mail": "hello", "echo": "second-token-of-ann"}',
        ):
            status = 401 if answer is None else 200
            stub.script(Answer(status=status, chunks=((answer or "{}").encode(),)))

        @tool
        async def read_mail(context: ToolContext) -> str:
            """Read the user's mail."""
            async with httpx2.AsyncClient() as client:
                for fresh in (False, True):
                    token = await context.credentials(fresh=fresh)
                    answer = await client.get(
                        f"{stub.url}/mail", headers={"authorization": f"Bearer {token}"}
                    )
                    if answer.status_code != 401:
                        break
            context.progress(f"read with {token}")
            return answer.text

        @tool
        def plain(context: ToolContext) -> str:
            """Read it without a loop."""
            return f"again with {context.wait_for_credentials()}"

        def script(request: ModelRequest) -> Line:
            seen.append(str(request.messages))
            return [calls("read_mail"), says("Read.")][request.step - 1]

        clerk = Agent(name="clerk", model="scripted:x", tools=[read_mail, plain])
        handler = Kept()
        logging.getLogger().addHandler(handler)
        try:
            async with running(
                [clerk], models={"scripted": ScriptedModel(script)}, credentials=credentials(service.token)
            ) as client:
                run = await client.start("clerk", "Read.", user="ann")
                assert (await run.result()).output == "Read."
                history = str((await run.handle.fetch_history()).to_json())
        finally:
            logging.getLogger().removeHandler(handler)
        used = [each.headers.get("authorization") for each in stub.requests if each.path == "/mail"]
    assert used == ["Bearer first-token-of-ann", "Bearer second-token-of-ann"]
    assert "hello" in seen[-1]
    for place in (history, *seen, *lines):
        assert "token-of-ann" not in place


async def test_functions_in_threads_get_them_too() -> None:
    tokens = Tokens()

    @tool
    def whoami(context: ToolContext) -> str:
        """Say who the user is."""
        return "known" if context.wait_for_credentials() == "token-1-of-ann" else "unknown"

    clerk = Agent(name="clerk", model="scripted:x", tools=[whoami])
    model = ScriptedModel(lambda request: calls("whoami") if request.step == 1 else says("ok"))
    async with running([clerk], models={"scripted": model}, credentials=credentials(tokens.give)) as client:
        run = await client.start("clerk", "go", user="ann", context={"order": "W1"})
        await run.result()
        [result] = (await run.transcript())[2].tool_results
    assert result.text == "known"
    [asked] = tokens.asked
    assert (asked.user, asked.tool, asked.agent, asked.run_id) == ("ann", "whoami", "clerk", run.id)
    assert asked.context == {"order": "W1"}


def test_file_brings_its_function(tmp_path: Any) -> None:
    path = tmp_path / "with_credentials.py"
    path.write_text(
        "from perdure import Agent, Credentials, credentials\n\n\n@credentials\ndef tokens(request):\n"
        '    return Credentials("x")\n\n\nclerk = Agent(name="clerk", model="scripted:x")\n'
    )
    assert load_file(str(path)).credentials.providers["clerk"].name == "tokens"
